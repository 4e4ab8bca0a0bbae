"""A collect job without a model, whose processes start in a second, and the process that drives it.

Everything but the forward is the real thing: the store and its writer, controller, execution, pool, detached actor.
``python kill_job.py ADDRESS`` is the driver: it reads jobs as JSON, one a line, and runs them one after the other.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store.leases import held
from pipeline.store.objects import Objects
from pipeline.store.rows import TokenRows
from pipeline.store.words import to_words
from pipeline.store.writer import StoreWriter
from schemas.collect import CollectSpec, CollectWorkers
from schemas.fingerprint import fingerprint
from schemas.store import PassRecord, StoreRecord
from workers.capacity import num_workers
from workers.controller import Controller
from workers.execution import Execution, Figures
from workers.pool import Loaded, WorkerPool
from workers.progress import Progress
from workers.pulse import Pulse, pulse_here
from workers.set_aside import given_up

sys.path.insert(0, str(Path(__file__).parent))

import faults

WIDTHS = {"blocks.0.hook_mlp_in": 5, "blocks.1.hook_resid_post": 3}
SHARD_ROWS, LAST_ROWS = 16, 7
MARK = "> "
"""Begins the lines of the driver's that are for the test: Ray prints some of its own."""


@dataclass(frozen=True)
class KillJob:
    """A store of ``num_units``, the last of them short."""

    store: str
    folder: str
    """Where faults are armed and process numbers are written."""
    num_units: int
    workers: CollectWorkers
    pause_s: float = 0.0
    """What the forward of a unit takes."""

    @property
    def num_rows(self) -> int:
        return (self.num_units - 1) * SHARD_ROWS + LAST_ROWS

    def writer(self) -> StoreWriter:
        identity = {"model": "synthetic", "table": "t" * 64}
        record = StoreRecord(
            fingerprint=fingerprint(identity), identity=identity, table_fingerprint="t" * 64, dtype="bfloat16",
            chunk_rows=8, shard_rows=SHARD_ROWS, codec="none", table_url="tokens", specials={}, spec={}, versions={},
        )  # fmt: skip
        return StoreWriter.open(
            self.store, record, PassRecord(hook_points=WIDTHS, batch_tokens=16), num_rows=self.num_rows
        )

    def spec(self) -> CollectSpec:
        """What names the job in the cluster."""
        return CollectSpec.model_validate({
            "model": {"path": "synthetic"}, "hook_points": [*WIDTHS], "output": self.store,
            "tokens": {"corpus": {"format": "text", "urls": ["a"]}}, "workers": self.workers,
        })  # fmt: skip


def rows_of(start: int, stop: int) -> tuple[dict[str, Any], TokenRows]:
    """The same rows each time, and others for each unit."""
    rng = np.random.default_rng(start)
    arrays = {
        hook: to_words(rng.standard_normal((stop - start, width)).astype(np.float32), "bfloat16")
        for hook, width in WIDTHS.items()
    }
    row = np.arange(start, stop)
    return arrays, TokenRows(row, row * 7 % 50, row // 20, row % 10, row // 20 % 3 == 1)


@dataclass(frozen=True)
class Done:
    unit: int
    num_rows: int
    size_bytes: int


class KillCollector:
    """Writes units without a model, and meets the faults that are armed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._steps = 0

    def load(self, job: KillJob, num_threads: int) -> Loaded:
        del num_threads
        self._job, self._folder = job, Path(job.folder)
        (self._folder / f"loaded.{self._name}").touch()
        writer = job.writer()
        self._writer = StoreWriter(
            faults.DeadlyObjects(job.store, self._folder),
            writer.record,
            writer.pass_record,
            writer.pass_id,
            writer.num_rows,
        )
        return Loaded(WIDTHS, os.getpid(), "here", 0.0)

    def collect(self, unit: int, attempt: int) -> Done:
        time.sleep(self._job.pause_s)
        while (self._folder / f"hold.{unit}").exists():  # no hang
            time.sleep(0.05)
            self._steps += 1
        faults.strike(self._folder, "before_encode", unit)
        if faults.fires(self._folder, "hang", unit):
            time.sleep(3600)
        if faults.fires(self._folder, "error", unit) or (self._folder / f"poison.{unit}").exists():
            raise RuntimeError(f"trouble in unit {unit}")
        if (self._folder / f"deadly.{unit}").exists():
            faults.die()
        start, stop = self._writer.unit_rows(unit)
        entry = self._writer.write_unit(
            unit, *rows_of(start, stop), worker=f"{self._name}:{os.getpid()}", attempt=attempt, seconds={}
        )
        self._steps += 1
        return Done(unit, entry.num_rows, sum(receipt.size_bytes for receipt in entry.objects.values()))

    def pulse(self) -> Pulse:
        return pulse_here(self._steps)


def collect(job: KillJob, *, progress: Progress) -> dict[str, Any]:
    """What ``run_collect`` does, without a token table."""
    (Path(job.folder) / "pid.controller").write_text(str(os.getpid()))
    writer, figures = job.writer(), Figures()
    missing = sorted({*range(writer.num_units)} - {*writer.committed_units()})
    controller = Controller(missing, len(missing), num_workers(job.workers), job.workers)
    with (
        held(Objects(job.store), "kill"),
        given_up("kill", job.store) as aside,
        progress.task("kill", total=job.num_rows) as task,
    ):
        try:
            Execution(
                name="kill",
                controller=controller,
                pool=WorkerPool(job, job.workers, KillCollector, "collect", calls_at_once=2),
                figures=figures,
                task=task,
                progress=progress,
                kept=lambda number: f"kill: stopped; {number} units are kept",
                amount=lambda done: done.num_rows,
            ).run()
        finally:
            aside.add(controller.set_aside, lambda unit: f"unit {unit}")
        aside.require_none()
        writer.finish()
    facts = {"units": figures.units, "deaths": figures.deaths, "preemptions": figures.preemptions}
    return {**facts, "retries": figures.retries}


def main() -> None:
    import ray

    from schemas.pipeline import ClusterSpec
    from workers.cluster import connect
    from workers.detached import run_detached

    this = sys.modules[__name__]
    for module in (this, faults):
        ray.cloudpickle.register_pickle_by_value(module)
    with connect(ClusterSpec(), sys.argv[1]):
        print(f"{MARK}ready", flush=True)
        for line in sys.stdin:
            facts = json.loads(line)
            job = KillJob(**{**facts, "workers": CollectWorkers(**facts["workers"])})
            (Path(job.folder) / "pid.driver").write_text(str(os.getpid()))
            try:
                summary = run_detached(job.spec(), partial(collect, job), Progress(sys.stderr))
            except KeyboardInterrupt:
                summary = {"stopped": True}
            except Exception as error:  # noqa: BLE001 - the test is told
                summary = {"error": f"{type(error).__name__}: {error}"}
            print(MARK + json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
