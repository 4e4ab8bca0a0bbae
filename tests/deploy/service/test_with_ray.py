"""The service's process over a real Ray head: one session, and kills at random moments while jobs are submitted.

The head's interpreter of jobs is a script that notes each run, so that runs are counted where they happen.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray_head import BIN, Head, free_ports, started_head

from deploy import client
from deploy.submission import job_fingerprint, job_id
from schemas.errors import JobError, MismatchError, MissingError, UnreachableError
from schemas.pipeline import JOB_ADAPTER

pytestmark = [pytest.mark.slow, pytest.mark.ray]

_INTERPRETER = """#!/bin/sh
# As `python -c "import deploy.entry"` and `python -m deploy.entry job.json`.
[ "$1" = "-m" ] || exit 0
name=$(sed -n 's/^  "name": "\\(.*\\)",$/\\1/p' job.json | head -1)
echo "$name" >> {runs}
echo "begun $name"
case "$name" in
  sleepy*) sleep 300 ;;
  broken*) echo "no luck"; exit 1 ;;
esac
sleep 1
echo "ended $name"
"""


@dataclass
class Server:
    """`headworks serve` on a port of its own, to be killed and started again over the same database."""

    folder: Path
    head: Head
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = self.folder / "serve.yaml"
        config.write_text(
            f"clusters: {{real: {{address: '{self.head.url}'}}}}\npoll_s: 0.3\n"
            f"database: sqlite:///{self.folder}/service.db\n"
        )
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "headworks", "serve", "--port", str(self.port), "--config", config],
                env=self.head.environment, stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip

    def end(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(timeout=30)

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while not client.is_service(self.url):
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "runs.txt"


@pytest.fixture(scope="module")
def head(runs: Path) -> Iterator[Head]:
    interpreter = runs.parent / "python"
    interpreter.write_text(_INTERPRETER.replace("{runs}", str(runs)))
    interpreter.chmod(0o755)
    with started_head(HEADWORKS_PYTHON=str(interpreter)) as head:
        yield head


@pytest.fixture
def server(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv(client.TOKEN, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    server = Server(tmp_path, head)
    server.start()
    server.wait()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.end(signal.SIGKILL)


def job_of(name: str, folder: Path) -> Any:
    return JOB_ADAPTER.validate_python(
        {
            "kind": "train", "name": name, "store": f"{folder}/store", "output": f"{folder}/{name}",
            "dictionaries": [{"name": "d", "sources": ["h"], "num_latents": 64}],
        }
    )  # fmt: skip


def wait_for(identifier: str, server: Server, *statuses: str) -> client.ServiceJob:
    deadline = time.monotonic() + 120
    while (job := client.status(identifier, server.url)).status not in statuses:
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    return job


def test_a_session_with_logs_stop_failure_retry_and_a_restart(server: Server, runs: Path, tmp_path: Path) -> None:
    job = client.submit(job_of("quick", tmp_path), server.url)
    assert job.status == "ACCEPTED"
    assert client.submit(job_of("quick", tmp_path), server.url).id == job.id
    log: list[str] = []
    ended = client.follow(job.id, server.url, log.append)
    assert (ended.status, ended.cluster) == ("SUCCEEDED", "real")
    assert "begun quick" in "".join(log)
    assert "ended quick" in "".join(log)
    assert "ended quick" in client.logs(job.id, server.url)
    assert ended.started < ended.ended

    broken = client.submit(job_of("broken", tmp_path), server.url)
    with pytest.raises(JobError, match="failed"):
        client.follow(broken.id, server.url, log.append)
    assert client.retry(broken.id, server.url).attempt == 1

    sleepy = client.submit(job_of("sleepy", tmp_path), server.url)
    wait_for(sleepy.id, server, "RUNNING")
    with pytest.raises(MismatchError, match="only a job that has ended"):
        client.retry(sleepy.id, server.url)
    server.end(signal.SIGKILL)
    with pytest.raises(UnreachableError, match="no Headworks service answers at"):
        client.status(sleepy.id, server.url)
    server.start()
    server.wait()
    assert wait_for(sleepy.id, server, "RUNNING").attempt == 0
    assert client.stop(sleepy.id, server.url)
    wait_for(sleepy.id, server, "STOPPED")
    assert not client.stop(sleepy.id, server.url)
    with pytest.raises(MissingError, match="did you mean"):
        client.status(sleepy.id[:-1] + "9", server.url)
    wait_for(f"{broken.id[:-1]}1", server, "FAILED")
    assert Counter(runs.read_text().split()) == {"quick": 1, "broken": 2, "sleepy": 1}
    assert [each.id for each in client.jobs(server.url)][-1] == job.id


def test_jobs_run_exactly_once_however_often_the_service_is_killed(server: Server, runs: Path, tmp_path: Path) -> None:
    seed = int(os.environ.get("HEADWORKS_KILL_SEED", "0"))
    moments = random.Random(seed)
    names = [f"once-{number}" for number in range(8)]
    accepted: dict[str, str] = {}

    def submit_all() -> None:
        for name in names:
            accepted[name] = accepted_despite(job_of(name, tmp_path), server.url)

    submitting = threading.Thread(target=submit_all)
    submitting.start()
    kills = 0
    while submitting.is_alive() or kills < 6:
        server.wait()
        time.sleep(moments.uniform(0, 1.5))
        server.end(signal.SIGKILL)
        server.start()
        kills += 1
        assert kills < 60
    submitting.join()
    server.wait()
    for identifier in accepted.values():
        wait_for(identifier, server, "SUCCEEDED")
    counted = {name: count for name, count in Counter(runs.read_text().split()).items() if name.startswith("once-")}
    assert counted == dict.fromkeys(names, 1), f"seed {seed}, {kills} kills"
    assert sorted(accepted) == sorted(names)


def accepted_despite(job: Any, url: str) -> str:
    """Ask for the first attempt until there is an answer, as programs do; the id is known before."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return client.submit(job, url, attempt=0).id
        except MismatchError:
            return job_id(job.name, job_fingerprint(job), 0)  # accepted before the answer was lost, and ended since
        except UnreachableError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
