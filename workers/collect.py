"""The collect job: token table, plan, actors, manifest.

1. The token table is built, its parts tokenised side by side, or an equal one is reused.
2. The plan is what the store's ledger lacks. Where nothing is missing no actor is started and no model is loaded.
3. The controller's decisions are carried out until every unit is committed; then the manifest is written. Meanwhile a
   lease on the store keeps sweeps and repairs away.

Nothing here is lost by a kill at any moment: what the ledger has is kept, and the next run begins at 1.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from pipeline.collection.prepare import CollectPass, Pending, prepare, require_space, table_url
from pipeline.store.leases import held
from pipeline.store.objects import Objects
from pipeline.store.retention import keep_as_wished
from pipeline.tokens.table import TokenTable, build_table
from schemas.collect import CollectSpec
from schemas.errors import IncompleteError, MismatchError, UserError
from schemas.store import Manifest
from workers.collector import Collector, Receipt
from workers.controller import (
    Controller,
    Decision,
    Event,
    Fail,
    Finish,
    LeaseUnit,
    RetryUnit,
    StartWorker,
    StopWorker,
    UnitCommitted,
    UnitFailed,
    WorkerFailed,
    WorkerReady,
)
from workers.pool import POLL_INTERVAL_S, Loaded, WorkerPool, num_workers
from workers.progress import Progress, Task
from workers.tokenise import map_parts

_log = logging.getLogger(__name__)


@dataclass
class _Figures:
    """What this run did, for the summary."""

    rows: int = 0
    size_bytes: int = 0
    units: int = 0
    deaths: int = 0
    retries: int = 0
    load_seconds: float = 0.0
    collect_seconds: float = 0.0


def run_collect(
    spec: CollectSpec,
    *,
    progress: Progress | None = None,
    actor_class: type[Collector] = Collector,
    table: TokenTable | None = None,
) -> dict[str, Any]:
    """Collect what is missing of the store that ``spec`` describes. Ray must be connected; returns the summary.

    ``table``: the job's token table where the caller has built it, see ``collect_table``.

    Raises:
        UserError: what the user must mend, the very error that a worker met. JobError: a unit failed too often.
    """
    started = time.perf_counter()
    progress = progress or Progress()
    table = table or collect_table(spec, progress)
    tokenised = time.perf_counter()
    figures = _Figures()
    passes, manifest = _collected(spec, table, figures, progress, actor_class)
    num_units = sum(one.of.num_units for one in passes)
    return {
        "tokens": passes[0].of.num_rows,
        "tokens_computed": figures.rows,
        "tokens_per_s": figures.rows / figures.collect_seconds if figures.collect_seconds else 0.0,
        "bytes": manifest.size_bytes,
        "bytes_per_s": figures.size_bytes / figures.collect_seconds if figures.collect_seconds else 0.0,
        "units": num_units,
        "units_reused": num_units - figures.units,
        "reused": figures.units == 0,
        "retries": figures.retries,
        "worker_deaths": figures.deaths,
        "hook_points": {hook: manifest.hook_points[hook] for hook in spec.hook_points},
        "seconds": time.perf_counter() - started,
        "seconds_by_stage": {
            "tokenise": tokenised - started,
            "load": figures.load_seconds,
            "collect": figures.collect_seconds,
        },
        "fingerprint": manifest.fingerprint,
        "table_fingerprint": table.fingerprint,
    }


def _collected(
    spec: CollectSpec, table: TokenTable, figures: _Figures, progress: Progress, actor_class: type[Collector]
) -> tuple[list[Pending], Manifest]:
    """Carry out the plan, and anew where jobs that write to the store at the same time have changed what it must be."""
    passes = prepare(spec, table)
    while True:
        try:
            # A store that lacks nothing may be one that this job cannot write to.
            with held(Objects(spec.output), spec.name) if any(one.units for one in passes) else nullcontext():
                widths = [_run_pass(one, figures, progress, actor_class) for one in passes]
                # All of them first: more rows are shown once every hook point of the store has them.
                manifests = [one.of.writer(width).finish() for one, width in zip(passes, widths, strict=True)]
                keep_as_wished(Objects(spec.output), spec.retention)
            return passes, manifests[-1]
        except (IncompleteError, MismatchError) as error:
            again = prepare(spec, table)
            if _plan(again) == _plan(passes):
                raise
            progress.note(f"{spec.name}: another job has added to the store meanwhile, going on with what is left")
            _log.info("collect.planned_anew store=%s reason=%s", spec.output, error)
            passes = again


def _plan(passes: list[Pending]) -> list[tuple[tuple[str, ...], int]]:
    """What other jobs can change of a plan."""
    return [(one.of.hook_points, one.of.num_rows) for one in passes]


def collect_table(spec: CollectSpec, progress: Progress) -> TokenTable:
    """The token table of the job, built if it is not there. Raises as ``build_table``."""
    with progress.task(f"{spec.name}: tokens", total=spec.tokens.max_tokens) as task:
        return build_table(
            spec.tokens,
            spec.model,
            url=table_url(spec),
            shard_rows=spec.storage.shard_rows,
            map_parts=map_parts,
            progress=task.reach,
        )


def _run_pass(one: Pending, figures: _Figures, progress: Progress, actor_class: type[Collector]) -> dict[str, int]:
    """Compute what is missing of one pass; hook point -> width."""
    units = one.units
    name = one.of.spec.name
    if not units:
        progress.note(f"{name}: all {one.of.num_units} units are in the store, nothing to compute")
        return dict(one.widths)
    limits = one.of.spec.workers
    controller = Controller(units, len(units), num_workers(limits), limits)
    missing = one.num_rows(units)
    done = one.of.num_rows - missing
    with progress.task(f"{name}: activations", total=one.of.num_rows, done=done) as task:
        run = _PassRun(one.of, controller, WorkerPool(one.of, limits, actor_class, "collect"), figures, task, missing)
        try:
            return run.execute(progress)
        except BaseException:
            if kept := one.of.num_units - len(units) + controller.num_committed:
                progress.note(
                    f"{name}: stopped; {kept} of {one.of.num_units} units are kept in {one.of.spec.output}, "
                    "the same command goes on from there"
                )
            raise
        finally:
            figures.deaths += controller.num_deaths


@dataclass
class _PassRun:
    """Carries out the controller's decisions for one pass."""

    one: CollectPass
    controller: Controller
    pool: WorkerPool
    figures: _Figures
    task: Task
    missing_rows: int
    widths: dict[str, int] = field(default_factory=dict)
    started_s: float = field(default_factory=time.perf_counter)
    ready_s: float = 0.0

    def execute(self, progress: Progress) -> dict[str, int]:
        """Until the controller finishes or fails; the actors are gone when this returns, in whatever way."""
        try:
            decisions = self.controller.start()
            while not self._carry_out(decisions, progress):
                decisions = self._next_decisions()
            return self.widths
        finally:
            self.pool.shutdown()
            if self.ready_s:
                self.figures.collect_seconds += time.perf_counter() - self.ready_s

    def _next_decisions(self) -> list[Decision]:
        self.task.tick()
        decisions: list[Decision] = []
        for event, answer in self.pool.wait(POLL_INTERVAL_S):
            self._note(event, answer)
            decisions.extend(self.controller.apply(event))
        return decisions

    def _note(self, event: Event, answer: Loaded | Receipt | None) -> None:
        """Count what an event brings; the first model that is loaded tells how much will be written."""
        match event, answer:
            case WorkerReady(), Loaded():
                if not self.ready_s:
                    require_space(self.one, answer.widths, self.missing_rows)
                    self.widths = answer.widths
                    self.ready_s = time.perf_counter()
                    self.figures.load_seconds += self.ready_s - self.started_s
                    self.task.restart_clock()
            case UnitCommitted(), Receipt():
                self.figures.units += 1
                self.figures.rows += answer.num_rows
                self.figures.size_bytes += answer.size_bytes
                self.task.advance(answer.num_rows, answer.size_bytes)
            case ((WorkerFailed(error=UserError()) | UnitFailed(error=UserError())), _):
                pass  # ends the job, whose message it is
            case _:
                _log.warning("collect.%s %s", type(event).__name__, event)

    def _carry_out(self, decisions: list[Decision], progress: Progress) -> bool:
        """True when the pass is finished. Raises the error of a ``Fail``."""
        for decision in decisions:
            match decision:
                case StartWorker(worker=worker):
                    self.pool.start(worker)
                case StopWorker(worker=worker):
                    self.pool.stop(worker)
                case LeaseUnit(worker=worker, unit=unit, attempt=attempt):
                    self.pool.lease(worker, unit, attempt)
                case RetryUnit(unit=unit, cause=cause):
                    self.figures.retries += 1
                    progress.note(f"{self.one.spec.name}: unit {unit} is tried again: {cause}")
                case Fail(error=error):
                    raise error
                case Finish():
                    return True
        return False
