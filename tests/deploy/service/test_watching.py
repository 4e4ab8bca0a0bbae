"""Progress as the service reads it from logs: the very lines that jobs write, and the jobs that run."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.service.database import open_database
from deploy.service.jobs import Filter, Jobs
from deploy.service.log_facts import LogFacts, TaskFacts
from deploy.service.states import Delivery, State
from deploy.service.watching import Watcher
from pipeline.spec_file import validated
from schemas.errors import UnreachableError
from workers.live_notes import StallNotes
from workers.progress import Progress


def test_the_lines_of_a_real_progress_are_read_back() -> None:
    now, stream = 0.0, io.StringIO()
    progress = Progress(stream, interval_s=1, clock=lambda: now)
    with progress.task("pile: tokens", total=1000) as tokens:
        now = 10.0
        tokens.advance(500)
    with progress.task("pile: activations", total=4_000_000, done=1_000_000) as task:
        now = 110.0
        task.advance(1_200_000, size_bytes=3_000_000_000)
    stream.write("pile: broken lines, and words of libraries: 3 of 4\n")
    facts = LogFacts()
    for letter in stream.getvalue():
        facts.add(letter)
    tokens_facts, activations = facts.tasks
    assert tokens_facts == TaskFacts("pile: tokens", 500, 1000, "tokens", 50.0, None, 10.0)
    assert activations == TaskFacts("pile: activations", 2_200_000, 4_000_000, "tokens", 12_000, 30e6, 150.0)


def test_rates_without_an_end_waits_and_lines_of_json() -> None:
    now, stream = 0.0, io.StringIO()
    progress = Progress(stream, interval_s=1, clock=lambda: now)
    notes = StallNotes("sae", "rows", progress)
    with progress.task("sae", unit="steps") as task:
        now = 2.0
        task.advance(7)
        notes.add(25.0, notes._since_s + 30)
    facts = LogFacts()
    facts.add("".join(json.dumps({"message": line}) + "\n" for line in stream.getvalue().splitlines()))
    (one,) = facts.tasks
    assert one == TaskFacts("sae", 7, None, "steps", 3.5, waits="waited for rows 25 of the last 30 s")
    facts.add("sae: waits for rows no more\nsae: 3.01k/1.2.3 steps, 2 left, odd\n[1]\n{nonsense\n")
    (one,) = facts.tasks
    assert (one.done, one.total, one.rate_per_s, one.left_s, one.waits) == (3010, 0.0, None, None, "")


def test_a_log_that_names_tasks_without_end_takes_no_more_memory() -> None:
    facts = LogFacts()
    facts.add("".join(f"task {number}: 1/2 rows\n" for number in range(100)))
    facts.add("x" * 10_000_000)
    facts.add("\nlast: 1/2 rows\n")
    assert [task.name for task in facts.tasks] == [*(f"task {number}" for number in range(85, 100)), "last"]
    assert len(facts._rest) == 0


class Cluster:
    """Logs that begin with an error."""

    def __init__(self) -> None:
        self.tails = 0

    async def tail(self, _identifier: str) -> AsyncIterator[str]:
        self.tails += 1
        if self.tails == 1:
            raise UnreachableError("not yet")
        yield f"one: {self.tails}/4 rows\n"
        await asyncio.sleep(60)


def test_running_jobs_are_followed_and_ended_ones_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.service.watching._AGAIN_S", 0.01)
    engine = open_database(f"sqlite:///{tmp_path}/db")
    jobs, cluster = Jobs(engine), Cluster()
    spec = validated(
        {
            "kind": "train", "name": "One_b", "store": "/s", "output": "/o",
            "dictionaries": [{"name": "d", "sources": ["h"], "num_latents": 64}],
        },
        where="test",
    )  # fmt: skip
    job, _ = jobs.accept(spec, cluster="c", owner="me", team="lab")
    running = jobs.change(job, replace(job.progress, state=State.RUNNING, delivery=Delivery.CONFIRMED))
    assert running is not None
    watcher = Watcher(jobs, {"c": cluster}, 0.01)

    async def until(has_tasks: bool) -> None:
        async with asyncio.timeout(20):
            while bool(watcher.tasks(job.id)) != has_tasks:
                await asyncio.sleep(0.01)

    async def watch() -> None:
        watching = asyncio.create_task(watcher.run())
        await until(has_tasks=True)
        assert watcher.tasks(job.id) == [TaskFacts("one", 2, 4, "rows")]
        assert jobs.change(running, replace(running.progress, state=State.SUCCEEDED)) is not None
        await until(has_tasks=False)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(watch())
    assert cluster.tails == 2
    for part, total in (("ne_", 1), ("oNe", 1), ("on_e", 0), ("%", 0), ("One%", 0)):
        assert jobs.page(Filter(name=part), limit=9, offset=0)[1] == total, part
    engine.dispose()
