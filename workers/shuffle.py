"""The shuffle job on Ray: scatter passes and the gathering, one after the other, each spread over actors.

1. The plan is what the new store's ledger and the runs of earlier passes lack.
2. Each pass is a list of tasks, leased by a controller as the units of a collection are: retries, deaths and their
   budgets are the same. A task that is done twice writes the same bytes.
3. When every unit is committed the manifest is written and the runs are removed.

A kill at any moment loses the tasks under way; the next run begins at 1.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import Any

from pipeline.shuffling.plan import MIN_SECTION_BYTES
from pipeline.shuffling.prepare import ShuffleJob, prepare, require_space
from pipeline.shuffling.tasks import Done, Shuffling
from pipeline.store.leases import held
from pipeline.store.objects import Objects
from schemas.collect import CollectWorkers
from schemas.shuffle import ShuffleSpec
from workers.capacity import num_workers
from workers.controller import Controller
from workers.execution import Execution, Figures
from workers.pool import Loaded, WorkerPool
from workers.progress import Progress
from workers.pulse import Pulse, pulse_here
from workers.set_aside import GivenUp, given_up
from workers.telemetry import Telemetry


@dataclass(frozen=True)
class Stage:
    """One pass of a job: a scatter pass by its level, or the gathering, level 0."""

    job: ShuffleJob
    level: int


class Shuffler:
    """A process that does tasks of one stage. Final; runs as an actor, or as it is where there is no Ray."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._level = 0
        self._shuffling: Shuffling | None = None

    def load(self, stage: Stage, num_threads: int) -> Loaded:
        """Open the source and join the new store."""
        del num_threads  # set in the environment, and nothing here has threads of its own
        started = time.perf_counter()
        host = socket.gethostname()
        self._level = stage.level
        self._shuffling = Shuffling.open(stage.job, worker=f"{self._name}@{host}:{os.getpid()}")
        return Loaded({}, os.getpid(), host, time.perf_counter() - started)

    def shuffle(self, task: int, attempt: int) -> Done:
        """One task; returns when its run exists or its units are in the ledger."""
        assert self._shuffling is not None, "load comes first"
        return self._shuffling.do(self._level, task, attempt=attempt)

    def pulse(self) -> Pulse:
        """A task has no steps to count: seconds of the processor tell that it gets on."""
        return pulse_here(int(time.process_time()))


def run_shuffle(
    spec: ShuffleSpec,
    *,
    progress: Progress | None = None,
    actor_class: type[Shuffler] = Shuffler,
    min_section_bytes: int = MIN_SECTION_BYTES,
) -> dict[str, Any]:
    """Shuffle what is missing of the store that ``spec`` describes. Ray must be connected; returns the summary.

    Raises:
        UserError: what the user must mend, the very error that a worker met. JobError: tasks were set aside, or more
            failed than the budgets allow.
    """
    started = time.perf_counter()
    progress = progress or Progress()
    job = prepare(spec, min_section_bytes=min_section_bytes)
    shuffling = Shuffling.open(job, worker="driver")
    missing = shuffling.missing(0)
    figures = Figures()
    if missing:
        require_space(job)
        with held(Objects(spec.output), spec.name), given_up(spec.name, spec.output) as aside:
            for level, tasks in shuffling.stages():
                _run_stage(Stage(job, level), tasks, figures, progress, actor_class, aside)
                aside.require_none()
            manifest = shuffling.finish()
    else:
        progress.note(f"{spec.name}: all {job.plan.num_buckets} buckets are in the store, nothing to do")
        manifest = shuffling.finish()
    seconds = time.perf_counter() - started
    return {
        "rows": job.num_rows,
        "passes": job.plan.num_passes,
        "buckets": job.plan.num_buckets,
        "buckets_reused": job.plan.num_buckets - len(missing),
        "reused": not missing,
        "bytes": manifest.size_bytes,
        "bytes_moved": figures.size_bytes,
        "retries": figures.retries,
        "worker_deaths": figures.deaths,
        "preemptions": figures.preemptions,
        "hook_points": manifest.hook_points,
        "seconds": seconds,
        "fingerprint": manifest.fingerprint,
        "table_fingerprint": job.record.table_fingerprint,
    }


def _run_stage(
    stage: Stage,
    tasks: list[int],
    figures: Figures,
    progress: Progress,
    actor_class: type[Shuffler],
    aside: GivenUp,
) -> None:
    if not tasks:
        return
    spec, plan = stage.job.spec, stage.job.plan
    name = f"{spec.name}: pass {stage.level or plan.num_passes} of {plan.num_passes}"
    limits = CollectWorkers(placement="replica", **spec.workers.model_dump(exclude={"memory"}))
    controller = Controller(tasks, len(tasks), num_workers(limits), limits, memory_fields="workers.memory")
    told = Telemetry(spec.name, spec.output, len(tasks), progress.events)
    total = plan.num_buckets if stage.level == 0 else plan.num_tasks(stage.level)
    num_reused = total - len(tasks)
    with progress.task(name, unit="tasks", total=total, done=num_reused) as task:
        try:
            Execution(
                name=name,
                controller=controller,
                pool=WorkerPool(stage, limits, actor_class, "shuffle"),
                figures=figures,
                task=task,
                progress=progress,
                kept=lambda num_committed: (
                    f"{name}: stopped; {num_reused + num_committed} of {total} tasks are done, the same command goes "
                    "on from there"
                ),
                amount=lambda _: 1,
                unit="task",
                observers=(told,),
            ).run()
        finally:
            told.ended()
            aside.add(controller.set_aside, lambda task: f"task {task} of {name}")
