"""Logs that are kept: fetched once a job has ended, whatever fails on the way, without secrets and not without end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from deploy.service.app import build_service, create_app
from deploy.service.database import open_database
from deploy.service.jobs import Job, Jobs
from deploy.service.kept_logs import FIRST_CHARACTERS, LAST_CHARACTERS, KeptLogs, LogKeeper, shortened
from deploy.service.settings import Settings
from deploy.service.states import Delivery, State
from deploy.submission import ClusterJob
from pipeline.spec_file import validated
from schemas.errors import MissingError, UnreachableError


class Cluster:
    """Gives the logs that it has, while it answers."""

    def __init__(self) -> None:
        self.is_up = True
        self.texts: dict[str, str] = {}
        self.forgetful = False
        self.asked: list[str] = []

    def known(self) -> dict[str, ClusterJob]:
        self._answer()
        return {} if self.forgetful else {name: ClusterJob(name, "", "", 0, "", "", "", "", "") for name in self.asked}

    def logs(self, identifier: str) -> str:
        self._answer()
        self.asked.append(identifier)
        if identifier not in self.texts:
            raise MissingError("no log")
        return self.texts[identifier]

    def _answer(self) -> None:
        if not self.is_up:
            raise UnreachableError("nothing answers")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path}/db")
    yield engine
    engine.dispose()


def job_of(jobs: Jobs, name: str, state: State, delivery: Delivery = Delivery.CONFIRMED) -> Job:
    spec = validated(
        {
            "kind": "train", "name": name, "store": "/s", "output": f"/o/{name}",
            "dictionaries": [{"name": "d", "sources": ["h"], "num_latents": 64}],
        },
        where="test",
    )  # fmt: skip
    job, _ = jobs.accept(spec, cluster="c", owner="me", team="lab")
    moved = jobs.change(job, replace(job.progress, state=state, delivery=delivery))
    assert moved is not None
    return moved


def test_logs_of_ended_jobs_are_kept_once_the_cluster_answers_and_no_others(engine: Engine) -> None:
    jobs, logs, cluster = Jobs(engine), KeptLogs(engine), Cluster()
    ended = job_of(jobs, "ended", State.FAILED)
    running = job_of(jobs, "running", State.RUNNING)
    never = job_of(jobs, "never", State.STOPPED, Delivery.NONE)
    lost = job_of(jobs, "lost", State.LOST)
    cluster.texts = {job.id: "token: hf_abcdefghijklmnopqrstuvwxyz0123456789\n" for job in (ended, running)}
    keeper = LogKeeper("c", cluster, logs)
    cluster.is_up = False
    keeper.step()
    assert logs.find(ended.id) is None
    cluster.is_up = True
    keeper.step()
    kept = logs.find(ended.id)
    assert kept is not None
    assert kept.startswith("token: ")
    assert "hf_abcdef" not in kept
    logs.keep(ended.id, "another")
    assert logs.find(ended.id) == kept
    assert [logs.find(job.id) for job in (running, never, lost)] == [None, None, None]
    keeper.step()
    assert cluster.asked == [ended.id]


def test_a_job_without_a_log_is_asked_for_a_few_times_and_not_for_ever(engine: Engine) -> None:
    jobs, logs, cluster = Jobs(engine), KeptLogs(engine), Cluster()
    job = job_of(jobs, "silent", State.SUCCEEDED)
    keeper = LogKeeper("c", cluster, logs)
    for _ in range(9):
        keeper.step()
    assert (len(cluster.asked), logs.find(job.id)) == (5, "")
    gone = job_of(jobs, "gone", State.SUCCEEDED)
    cluster.forgetful = True
    keeper.step()
    assert logs.find(gone.id) == ""


def test_many_logs_are_kept_in_rounds_that_follow_at_once(engine: Engine) -> None:
    jobs, logs, cluster = Jobs(engine), KeptLogs(engine), Cluster()
    cluster.texts = {job_of(jobs, f"j{number}", State.SUCCEEDED).id: "x" for number in range(20)}
    keeper = LogKeeper("c", cluster, logs)
    assert (keeper.step(), keeper.step(), logs.missing("c")) == (True, False, [])


def test_of_a_long_log_the_beginning_and_the_end_are_kept() -> None:
    short = "a line\n" * 10
    assert shortened(short) == short
    long = "".join(f"line {number}\n" for number in range(200_000))
    kept = shortened(long)
    assert len(kept) < FIRST_CHARACTERS + LAST_CHARACTERS + 100
    lines = kept.splitlines()
    assert (lines[0], lines[-1]) == ("line 0", "line 199999")
    (note,) = [line for line in lines if not line.startswith("line ")]
    left_out = int(note.split()[1].replace(",", ""))
    assert left_out + len(kept) - len(note) - 2 == len(long)


def test_the_service_gives_a_kept_log_when_its_cluster_is_gone(tmp_path: Path) -> None:
    facts = {"database": f"sqlite:///{tmp_path}/db", "clusters": {"c": {"address": "http://127.0.0.1:9"}}}
    service = build_service(Settings.model_validate(facts))
    job = job_of(service.jobs, "kept", State.SUCCEEDED)
    client = TestClient(create_app(service), base_url="http://127.0.0.1")
    path = f"/api/v1/jobs/{job.id}/logs"
    assert client.get(path).status_code == 502
    service.kept_logs.keep(job.id, "first\nlast\n")
    assert client.get(path).text == "first\nlast\n"
    assert client.get(path, params={"follow": True}).text == "first\nlast\n"
    service.engine.dispose()
