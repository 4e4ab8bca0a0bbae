"""Who holds a store, for how long, and what happens when he dies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.store.documents import sealed, to_bytes
from pipeline.store.leases import FOLDER, held, lease_key, live_leases, stale_leases
from pipeline.store.objects import Objects
from schemas.errors import BusyError
from schemas.lease import Lease

STORAGES = ["local_url", "memory_url", "s3_url"]


@pytest.fixture(params=STORAGES)
def objects(request: pytest.FixtureRequest) -> Objects:
    return Objects(request.getfixturevalue(request.param))


def test_objects_have_the_times_of_their_storage(objects: Objects) -> None:
    objects.write("a/first", b"1")
    objects.write("a/second", b"2")
    times = objects.times("a/")
    assert {*times} == {"a/first", "a/second"}
    assert times["a/first"] <= times["a/second"] <= times["a/first"] + 60
    assert abs(times["a/first"] - time.time()) < 60


def test_a_lease_is_seen_while_the_job_runs_and_gone_when_it_ends(objects: Objects) -> None:
    with held(objects, "collect") as lease:
        assert [one.job for one in live_leases(objects)] == [lease.job]
        with held(objects, "collect") as other:  # adding to a store is shared
            assert {one.job for one in live_leases(objects)} == {lease.job, other.job}
        with (
            pytest.raises(BusyError, match=rf"{lease.job} of .*@.*process {os.getpid()}"),
            held(objects, "gc", is_exclusive=True),
        ):
            raise AssertionError("the store is in use")
        assert [one.job for one in live_leases(objects)] == [lease.job]
    assert objects.list() == []
    with held(objects, "gc", is_exclusive=True):
        pass
    assert objects.list() == []


def test_a_lease_is_gone_when_the_job_fails(local_url: str) -> None:
    with pytest.raises(KeyboardInterrupt), held(Objects(local_url), "collect"):
        raise KeyboardInterrupt
    assert not Path(local_url).exists(), "a job that wrote nothing leaves nothing"


def test_a_running_job_renews_its_lease(local_url: str) -> None:
    objects = Objects(local_url)
    with held(objects, "collect", duration_s=0.5) as lease:
        before = objects.times(FOLDER)[lease_key(lease.job)]
        time.sleep(1.2)
        assert objects.times(FOLDER)[lease_key(lease.job)] > before + 0.5
        with held(objects, "collect") as asking:
            assert [one.job for one in live_leases(objects, asking=asking)] == [lease.job]


def test_the_lease_of_a_killed_job_ends_by_itself(local_url: str) -> None:
    script = (
        "import os, signal, sys\n"
        "from pipeline.store.leases import held\n"
        "from pipeline.store.objects import Objects\n"
        f"with held(Objects({local_url!r}), 'collect', duration_s=2.0):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    objects = Objects(local_url)
    (key,) = objects.list()
    with pytest.raises(BusyError), held(objects, "gc", is_exclusive=True):
        pass
    deadline = time.monotonic() + 30
    while live_leases(objects) and time.monotonic() < deadline:
        time.sleep(0.1)
    with held(objects, "gc", is_exclusive=True) as lease:
        assert stale_leases(objects, lease) == [key]


def test_a_clock_that_is_wrong_changes_nothing(objects: Objects) -> None:
    """The owner's clock is a day behind, so by ours its lease ended long ago; the storage knows better."""
    behind_s = time.time() - 86400
    lease = Lease(
        job="collect-1", owner="a@b", is_exclusive=False, started=behind_s, expires=behind_s + 600, duration_s=600
    )
    objects.write(lease_key(lease.job), to_bytes(sealed(lease)))
    with pytest.raises(BusyError, match="collect-1 of a@b"), held(objects, "gc", is_exclusive=True):
        pass


def test_an_old_lease_does_not_count_whatever_it_says_of_itself(local_url: str) -> None:
    ahead_s = time.time() + 86400
    lease = Lease(
        job="collect-1", owner="a@b", is_exclusive=False, started=ahead_s, expires=ahead_s + 600, duration_s=600
    )
    objects = Objects(local_url)
    objects.write(lease_key(lease.job), to_bytes(sealed(lease)))
    os.utime(Path(local_url) / lease_key(lease.job), (time.time() - 601,) * 2)
    with held(objects, "gc", is_exclusive=True) as mine:
        assert live_leases(objects, asking=mine) == []


def test_a_lease_that_cannot_be_read_counts_until_it_is_old(local_url: str) -> None:
    objects = Objects(local_url)
    objects.write(lease_key("torn"), b'{"job": "to')
    with pytest.raises(BusyError, match="torn of unknown"), held(objects, "gc", is_exclusive=True):
        pass
    os.utime(Path(local_url) / lease_key("torn"), (time.time() - 601,) * 2)
    with held(objects, "gc", is_exclusive=True):
        pass


def test_a_job_waits_while_the_store_is_swept(local_url: str, caplog: pytest.LogCaptureFixture) -> None:
    objects = Objects(local_url)
    order: list[str] = []

    def collect() -> None:
        with held(objects, "collect"):
            order.append("collect")

    with held(objects, "gc", is_exclusive=True):
        waiting = threading.Thread(target=collect)
        waiting.start()
        while len(objects.list(FOLDER)) < 2:
            time.sleep(0.01)
        time.sleep(0.2)
        order.append("gc")
    waiting.join(30)
    assert order == ["gc", "collect"]
    assert "is held by gc-" in caplog.text
