"""The service's process over a real Ray head: one session, kills at random moments while jobs are submitted, and a
collection that really computes.

The head's interpreter of jobs is a script that notes each run, so that runs are counted where they happen.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from ray_head import BIN, Head, free_ports, started_head

from deploy import client
from deploy.service.access import Role, Tokens
from deploy.service.database import open_database
from deploy.service.kept_logs import KeptLogs
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
  real*) exec {python} "$@" ;;
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
    policy: str = ""
    address: str = ""
    """Of its cluster; empty: the head's."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = self.folder / "serve.yaml"
        config.write_text(
            f"clusters: {{real: {{address: '{self.address or self.head.url}'}}}}\npoll_s: 0.3\n"
            f"database: sqlite:///{self.folder}/service.db\npolicy: '{self.policy}'\n"
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
    interpreter.write_text(_INTERPRETER.replace("{runs}", str(runs)).replace("{python}", sys.executable))
    interpreter.chmod(0o755)
    with started_head(HEADWORKS_PYTHON=str(interpreter)) as head:
        yield head


@pytest.fixture
def stopped_server(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv(client.TOKEN, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    server = Server(tmp_path, head)
    yield server
    if server.process is not None and server.process.poll() is None:
        server.end(signal.SIGKILL)


@pytest.fixture
def server(stopped_server: Server) -> Server:
    stopped_server.start()
    stopped_server.wait()
    return stopped_server


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


def test_a_collection_by_a_token_is_watched_and_its_store_found_and_its_log_kept(
    stopped_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "pipeline" / "collection"))
    from small_job import save_corpus, save_model, small_spec

    model, corpus, lab = save_model(tmp_path / "model"), save_corpus(tmp_path / "corpus"), tmp_path / "lab"
    lab.mkdir()
    server = stopped_server
    team = {"read": [str(tmp_path / "corpus")], "write": [str(lab)], "models": [str(model)]}
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump({"teams": {"lab": team}}))
    server.policy = str(tmp_path / "policy.yaml")
    secret = Tokens(open_database(f"sqlite:///{tmp_path}/service.db")).create("eve", Role.SUBMITTER, "lab")
    monkeypatch.setenv(client.TOKEN, secret)
    server.start()
    server.wait()
    spec = small_spec(model, corpus, lab / "store", name="real").model_dump(mode="json")
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(spec))

    def headworks(*words: str) -> subprocess.CompletedProcess[str]:
        command = [BIN / "headworks", *words]
        variables = {**os.environ, client.SERVICE: server.url}
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)

    submitted = headworks("submit", str(tmp_path / "real.yaml"), "--json")
    assert submitted.returncode == 0, submitted.stderr
    identifier = yaml.safe_load(submitted.stdout)["id"]
    tasks: dict[str, Any] = {}
    deadline = time.monotonic() + 120
    while not (job := client.status(identifier, server.url)).has_ended:
        tasks |= {task["name"]: task for task in job.tasks}
        assert time.monotonic() < deadline, (job, client.logs(identifier, server.url))
        time.sleep(0.5)
    assert job.status == "SUCCEEDED", client.logs(identifier, server.url)
    assert tasks["real: tokens"]["done"] > 0
    shown = headworks("jobs", "logs", identifier)
    assert "real: succeeded in" in shown.stdout
    summary = yaml.safe_load(shown.stdout.splitlines()[-1])
    assert (summary["status"], summary["output"]) == ("succeeded", str(lab / "store"))
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"Authorization": f"Bearer {secret}"}) as http:
        (store,) = http.get("/stores").json()["stores"]
        (stages,) = http.get(f"/jobs/{identifier}/figures").json()["stages"]
    assert (store["url"], store["state"], store["num_rows"]) == (
        str(lab / "store"), "complete", summary["collection"]["tokens"],
    )  # fmt: skip
    assert stages["units"] > 0
    assert stages["busy_s"]["forward"] > 0

    kept = KeptLogs(open_database(f"sqlite:///{tmp_path}/service.db"))
    while kept.find(identifier) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    server.end(signal.SIGTERM)
    server.address = "http://127.0.0.1:9"
    server.start()
    server.wait()
    assert client.logs(identifier, server.url).splitlines() == shown.stdout.splitlines()
