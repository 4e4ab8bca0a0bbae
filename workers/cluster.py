"""The Ray that a job runs on: the one that is there, the one at an address, or one of its own on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from schemas.errors import SpecError, UnreachableError
from schemas.pipeline import ClusterSpec

NAMESPACE = "headworks"
CONNECT_TIMEOUT_S = 5.0

# Read by Ray when it starts, so they are set before it does; what the operator has set stays.
_RAY_ENVIRONMENT = {
    # Workers would otherwise inherit `uv run` from the driver and build an environment without the extras.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Leave CUDA_VISIBLE_DEVICES of actors without GPUs alone, as future versions do.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Cluster:
    """A connected Ray."""

    address: str
    num_cpus: float
    num_gpus: float
    is_own: bool
    """Started here, and shut down at the end."""
    is_shared: bool = False
    """Joined at an address: it goes on when this process ends."""


@contextmanager
def connect(cluster: ClusterSpec, address: str | None = None) -> Iterator[Cluster]:
    """Connect for the length of the block; what was started or connected here is shut down at its end.

    A Ray that this process is already connected to is used as it is. Otherwise ``address``, or the ``RAY_ADDRESS`` that
    Ray sets inside its jobs, names the cluster; without any, one is started on this machine.

    Raises:
        UnreachableError: nothing answers at the address, or what answers is another Ray.
        SpecError: the address is the one of the Jobs API.
    """
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield _describe(ray.get_runtime_context().gcs_address, is_own=False)
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    try:
        if address is None or address == "local":
            _start(cluster)
            yield _describe(ray.get_runtime_context().gcs_address, is_own=True)
        else:
            _join(address)
            yield replace(_describe(address, is_own=False), is_shared=True)
    finally:
        ray.shutdown()


def total_resources() -> dict[str, float]:
    """Resources of the connected cluster by name (``CPU``, ``GPU``, ...), in use or not."""
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def living_nodes() -> list[dict[str, Any]]:
    """Ray's description of every node that is alive: ``NodeID``, ``Resources``, ..."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def guard_token() -> None:
    """Make the token of Rays that are started here for this user alone, or take others' leave to read it.

    Ray asks for a token in every cluster that it starts (``RAY_AUTH_MODE=disabled`` turns that off), keeps it in
    ``~/.ray/auth_token``, and lets everybody on the machine read that file.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    file = Path.home() / ".ray" / "auth_token"
    # Where a home cannot be written, Ray says so itself.
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            _put_token(file)
        if file.stat().st_uid == os.getuid() and file.stat().st_mode & 0o077:
            file.chmod(0o600)


def _put_token(file: Path) -> None:
    """Linked from a whole file, so that nobody reads half a token; of several processes one wins."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(beside, file)
    finally:
        beside.unlink()


def _start(cluster: ClusterSpec) -> None:
    guard_token()
    _init(
        address="local",
        num_cpus=cluster.num_cpus or None,
        object_store_memory=cluster.object_store_memory,
        include_dashboard=False,
    )


def _join(address: str) -> None:
    if address.startswith(("http://", "https://")):
        raise SpecError(
            f"{address} is an address of the Jobs API, which takes whole jobs: use `headworks submit`, or give the "
            "cluster's own address (HOST:6379, ray://HOST:10001 or auto)"
        )
    _require_listener(address)
    try:
        _init(address=address)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UnreachableError(
            f"cannot connect to Ray at {address}: {error}\nCheck that `ray status --address {address}` answers from "
            "here, that this user has the cluster's token (RAY_AUTH_TOKEN, or the file ~/.ray/auth_token), and that "
            "both sides run the same versions of Python and Ray."
        ) from error


def _init(**options: Any) -> None:
    # Workers' prints stay in Ray's log folder: receipts and errors come back as values, and a bar needs the terminal.
    ray.init(
        namespace=NAMESPACE,
        configure_logging=True,
        logging_level=logging.ERROR,
        log_to_driver=False,
        **options,
    )


def _require_listener(address: str) -> None:
    """Fail in seconds where Ray itself would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UnreachableError(
            f"nothing answers at {address}: {error}\nCheck the host and the port (6379 for `ray start --head`, 10001 "
            "for ray://), that the cluster runs, and that a firewall lets you through."
        ) from error


def _describe(address: str, *, is_own: bool) -> Cluster:
    resources = total_resources()
    return Cluster(
        address=address,
        num_cpus=float(resources.get("CPU", 0)),
        num_gpus=float(resources.get("GPU", 0)),
        is_own=is_own,
    )
