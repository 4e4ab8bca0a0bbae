"""Connecting to Ray: what is refused, what is shared, what is shut down."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from schemas.pipeline import ClusterSpec
from workers.cluster import Cluster, connect, guard_token

pytestmark = pytest.mark.ray


def python(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: this one is connected already."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


REFUSED = """
import sys
from schemas.errors import UserError
from schemas.pipeline import ClusterSpec
from workers.cluster import connect
for address in [*sys.argv[1:], None]:
    try:
        with connect(ClusterSpec(), address):
            print("connected")
    except UserError as error:
        print(type(error).__name__, str(error).replace("\\n", " "))
"""


def test_addresses_where_no_ray_is_are_refused_in_seconds() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{free.getsockname()[1]}"
    done = python(REFUSED, closed, f"ray://{closed}", "http://127.0.0.1:8265", RAY_ADDRESS=closed)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    for line in (lines[0], lines[1], lines[3]):
        assert line.startswith("UnreachableError nothing answers at")
        assert closed in line
        assert "6379" in line
    assert lines[2].startswith("SpecError")
    assert "headworks submit" in lines[2]


JOINED = """
import sys
import ray
from schemas.pipeline import ClusterSpec
from workers.cluster import connect
with connect(ClusterSpec(), sys.argv[1]) as cluster:
    print(cluster.is_own, cluster.num_cpus)
print(ray.is_initialized())
"""


def test_a_cluster_at_an_address_is_joined_and_left_running(ray_cluster: Cluster) -> None:
    done = python(JOINED, ray_cluster.address)
    assert done.stdout.splitlines() == ["False 2.0", "False"], done.stderr
    assert ray.cluster_resources()["CPU"] == 2  # type: ignore[no-untyped-call]


def test_a_connected_ray_is_used_and_not_shut_down(ray_cluster: Cluster) -> None:
    with connect(ClusterSpec(num_cpus=1)) as cluster:
        assert cluster == Cluster(ray_cluster.address, ray_cluster.num_cpus, ray_cluster.num_gpus, is_own=False)
    assert ray.is_initialized()


def test_no_call_starts_a_ray_by_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ENABLE_AUTO_CONNECT", raising=False)
    found = python("import workers.cluster, ray\nray.get_actor('nobody')")
    assert found.returncode == 1
    assert "Ray has not been started yet" in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [{"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}], ids=["other", "none"])
def test_a_cluster_that_was_started_here_asks_for_its_token(ray_cluster: Cluster, wrong: dict[str, str]) -> None:
    stranger = subprocess.Popen(
        [sys.executable, "-c", JOINED, ray_cluster.address],
        env=os.environ | wrong, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        # Ray itself would try for twenty seconds.
        assert stranger.stderr is not None
        said = next((line for line in stranger.stderr if "Unauthenticated" in line), "")
        assert "InvalidAuthToken" in said
    finally:
        stranger.kill()
        said_out, _ = stranger.communicate()
    assert "False" not in said_out


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    return tmp_path


def test_the_token_of_own_clusters_is_for_this_user_alone(home: Path) -> None:
    guard_token()
    file = home / ".ray" / "auth_token"
    token = file.read_text()
    assert len(token) == 64
    assert file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in file.parent.iterdir()] == ["auth_token"]
    file.chmod(0o644)
    guard_token()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == token


def test_a_token_of_the_operator_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 64)
    guard_token()
    assert not (home / ".ray").exists()
