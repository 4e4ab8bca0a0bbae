"""The table of jobs under many writers at once, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray_head import free_ports
from sqlalchemy import Connection, Engine

from deploy.service import states
from deploy.service.access import Role, Tokens
from deploy.service.audit import Audit
from deploy.service.database import answers, open_database
from deploy.service.jobs import Filter, Job, Jobs
from deploy.service.states import Delivery, State
from schemas.errors import MismatchError, MissingError, SpecError, UnreachableError
from schemas.pipeline import JOB_ADAPTER


def job_of(name: str) -> Any:
    return JOB_ADAPTER.validate_python(
        {
            "kind": "train", "name": name, "store": "/s", "output": f"/o/{name}",
            "dictionaries": [{"name": "d", "sources": ["h"], "num_latents": 64}],
        }
    )  # fmt: skip


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param(
            "postgresql",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("initdb") is None, reason="PostgreSQL is not installed here"),
            ],
        ),
    ]
)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        engine = open_database(f"sqlite:///{tmp_path}/jobs.db")
        yield engine
        engine.dispose()
        return
    # PostgreSQL does not run as root.
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    data, (port,) = Path("/tmp") / f"headworks-pg-{os.getpid()}", free_ports(1)
    data.mkdir(mode=0o700)
    options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1"
    try:
        if prefix:
            shutil.chown(data, "postgres")
        subprocess.run(
            [*prefix, "initdb", "-D", data / "d", "-A", "trust", "-U", "me"], check=True, capture_output=True
        )
        start = ["pg_ctl", "-D", data / "d", "-o", options, "-l", data / "log", "-w"]
        subprocess.run([*prefix, *start, "start"], check=True, stdout=subprocess.DEVNULL)
        try:
            engine = open_database(f"postgresql://me@127.0.0.1:{port}/postgres")
            yield engine
            engine.dispose()
        finally:
            subprocess.run([*prefix, "pg_ctl", "-D", data / "d", "-m", "fast", "stop"], check=True, capture_output=True)
    finally:
        shutil.rmtree(data, ignore_errors=True)


def test_a_job_is_accepted_with_what_is_noted_of_it_or_not_at_all(engine: Engine) -> None:
    jobs, audit = Jobs(engine), Audit(engine)

    def note(connection: Connection, job: Job) -> None:
        audit.record_in(connection, None, "job.submit", job.id, "ok")
        if job.name == "broken":
            raise RuntimeError("the process dies here")

    with pytest.raises(RuntimeError):
        jobs.accept(job_of("broken"), cluster="c", owner="me", team="t", note=note)
    assert jobs.page(Filter(), limit=9, offset=0) == ([], 0)
    assert audit.read() == []
    job, _ = jobs.accept(job_of("whole"), cluster="c", owner="me", team="t", note=note)
    jobs.accept(job_of("whole"), cluster="c", owner="me", team="t", note=note)
    assert [record.subject for record in audit.read()] == [job.id]
    assert audit.verify().sequence == 1


def test_many_at_once_make_one_job_and_one_change_of_it_counts(engine: Engine) -> None:
    jobs = Jobs(engine)
    assert answers(engine) == ""
    with ThreadPoolExecutor(16) as pool:
        accepted = [*pool.map(lambda _: jobs.accept(job_of("a"), cluster="c", owner="me", team="t"), range(32))]
    assert sum(is_new for _, is_new in accepted) == 1
    (job,) = {job.id: job for job, _ in accepted}.values()
    with ThreadPoolExecutor(8) as pool:
        changed = [*pool.map(lambda number: jobs.change(job, states.sending(job.progress, str(number))), range(8))]
    assert sum(each is not None for each in changed) == 1
    assert jobs.change(job, states.failed(job.progress, "late", 0)) is None
    stopped = jobs.stop(job.id)
    assert (stopped.progress.delivery, stopped.progress.stop_asked) == (Delivery.SENT, True)
    assert stopped.progress.state is State.ACCEPTED


def test_pages_filters_and_attempts(engine: Engine) -> None:
    clock = iter(range(1000, 2000))
    jobs = Jobs(engine, lambda: float(next(clock)))
    ids = [
        jobs.accept(job_of(name), cluster="c", owner="me", team=team)[0].id
        for name, team in zip("abc", "ttu", strict=True)
    ]
    page, total = jobs.page(Filter(team="t"), limit=1, offset=0)
    assert ([job.id for job in page], total) == ([ids[1]], 2)
    assert page[0].spec == {}
    assert jobs.get(ids[0]).spec["output"] == "/o/a"
    with pytest.raises(MissingError, match="did you mean"):
        jobs.get(ids[0] + "9")
    with pytest.raises(MissingError):
        jobs.get(ids[2], team="t")
    for wanted in ({"cluster": "d"}, {"team": "u"}, {"attempt": 3}):
        with pytest.raises(MismatchError, match="alive already"):
            jobs.accept(job_of("a"), **{"cluster": "c", "owner": "me", "team": "t", **wanted})
    assert jobs.stop(ids[0]).progress.state is State.STOPPED
    second, is_new = jobs.accept(job_of("a"), cluster="d", owner="you", team="t")
    assert (second.attempt, is_new) == (1, True)
    assert [each.id for each in jobs.attempts(second)] == [ids[0], second.id]
    assert jobs.counts() == {("c", "STOPPED"): 1, ("c", "ACCEPTED"): 2, ("d", "ACCEPTED"): 1}


def test_tokens_and_the_audit_log_are_kept_there(engine: Engine) -> None:
    tokens, audit = Tokens(engine), Audit(engine)
    secret = tokens.create("me", Role.VIEWER, "lab")
    assert tokens.find(secret) is not None
    with ThreadPoolExecutor(8) as pool:
        [*pool.map(lambda number: audit.record(None, "test", str(number), "ok"), range(16))]
    assert audit.verify().sequence == 16


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("headworks.db", SpecError, "expected sqlite:///FILE"),
        ("mysql://host/x", SpecError, "got mysql"),
        ("sqlite:////nowhere/at/all.db", UnreachableError, "does not open"),
        ("postgresql://me:secret@127.0.0.1:9/x", UnreachableError, "Connection refused"),
    ],
)
def test_databases_that_do_not_open_are_told(url: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as told:
        open_database(url)
    assert "secret" not in str(told.value)


def test_the_file_of_the_database_is_its_owners_alone(tmp_path: Path) -> None:
    open_database(f"sqlite:///{tmp_path}/own.db").dispose()
    assert (tmp_path / "own.db").stat().st_mode & 0o077 == 0
