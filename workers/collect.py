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
from typing import Any

from pipeline.collection.prepare import CollectPass, Pending, prepare, require_space, table_url
from pipeline.store import layout
from pipeline.store.leases import held
from pipeline.store.objects import Objects
from pipeline.store.retention import keep_as_wished
from pipeline.tokens.table import TokenTable, build_table
from schemas.collect import CollectSpec
from schemas.errors import IncompleteError, MismatchError
from schemas.store import Manifest
from workers.capacity import num_workers
from workers.collector import Collector
from workers.controller import Controller
from workers.execution import Execution, Figures
from workers.placing import placed
from workers.pool import Loaded, WorkerPool
from workers.progress import Progress
from workers.set_aside import GivenUp, given_up
from workers.stage_totals import StageTotals
from workers.telemetry import Telemetry
from workers.tokenise import map_parts

SMALL_TOKENS, SMALL_PART_BYTES = 2**18, 2**22
"""Token tables up to this are made by the driver, in seconds; greater ones by tasks, which start slower."""

_log = logging.getLogger(__name__)


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
        UserError: what the user must mend, the very error that a worker met. JobError: units were set aside, or more
            failed than the budgets allow.
    """
    started = time.perf_counter()
    progress = progress or Progress()
    table = table or collect_table(spec, progress)
    tokenised = time.perf_counter()
    figures, stages = Figures(), StageTotals()
    passes, manifest = _collected(spec, table, figures, stages, progress, actor_class)
    if words := stages.words(spec.output):
        progress.note(f"{spec.name}: {words}")
    num_units = sum(one.of.num_units for one in passes)
    return {
        "tokens": passes[0].of.num_rows,
        "tokens_computed": figures.rows,
        "tokens_per_s": figures.rows / figures.work_seconds if figures.work_seconds else 0.0,
        "bytes": manifest.size_bytes,
        "bytes_per_s": figures.size_bytes / figures.work_seconds if figures.work_seconds else 0.0,
        "units": num_units,
        "units_reused": num_units - figures.units,
        "reused": figures.units == 0,
        "retries": figures.retries,
        "worker_deaths": figures.deaths,
        "preemptions": figures.preemptions,
        "hook_points": {hook: manifest.hook_points[hook] for hook in spec.hook_points},
        "seconds": time.perf_counter() - started,
        "seconds_by_stage": {
            "tokenise": tokenised - started,
            "load": figures.load_seconds,
            "collect": figures.work_seconds,
        },
        "stages": stages.summary,
        "fingerprint": manifest.fingerprint,
        "table_fingerprint": table.fingerprint,
    }


def _collected(
    spec: CollectSpec,
    table: TokenTable,
    figures: Figures,
    stages: StageTotals,
    progress: Progress,
    actor_class: type[Collector],
) -> tuple[list[Pending], Manifest]:
    """Carry out the plan, and anew where jobs that write to the store at the same time have changed what it must be."""
    passes = placed(prepare(spec, table), progress)
    while True:
        try:
            # A store that lacks nothing may be one that this job cannot write to.
            needs_lease = any(one.units for one in passes)
            with (
                held(Objects(spec.output), spec.name) if needs_lease else nullcontext(),
                given_up(spec.name, spec.output) as aside,
            ):
                widths = [_run_pass(one, figures, stages, progress, actor_class, aside) for one in passes]
                aside.require_none()
                # All of them first: more rows are shown once every hook point of the store has them.
                manifests = [one.of.writer(width).finish() for one, width in zip(passes, widths, strict=True)]
                keep_as_wished(Objects(spec.output), spec.retention)
            return passes, manifests[-1]
        except (IncompleteError, MismatchError) as error:
            again = placed(prepare(spec, table), progress)
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
            map_parts=map if _is_small(spec) else map_parts,
            progress=task.reach,
        )


def _is_small(spec: CollectSpec) -> bool:
    """Whether this process tokenises the corpus before another one has even started."""
    return 0 < spec.tokens.max_tokens <= SMALL_TOKENS and spec.tokens.part_size <= SMALL_PART_BYTES


def _run_pass(
    one: Pending,
    figures: Figures,
    stages: StageTotals,
    progress: Progress,
    actor_class: type[Collector],
    aside: GivenUp,
) -> dict[str, int]:
    """Compute what is missing of one pass; hook point -> width."""
    units = one.units
    name, output = one.of.spec.name, one.of.spec.output
    if not units:
        progress.note(f"{name}: all {one.of.num_units} units are in the store, nothing to compute")
        return dict(one.widths)
    limits = one.of.spec.workers
    missing_rows = one.num_rows
    num_reused = one.of.num_units - len(units)
    widths = dict(one.widths)

    def begin(loaded: Loaded) -> None:
        """The first model that is loaded tells how much will be written."""
        require_space(one.of, loaded.widths, missing_rows)
        widths.update(loaded.widths)

    def kept(num_committed: int) -> str:
        if not (kept := num_reused + num_committed):
            return ""
        return (
            f"{name}: stopped; {kept} of {one.of.num_units} units are kept in {output}, "
            "the same command goes on from there"
        )

    controller = Controller(units, len(units), num_workers(limits), limits)
    told = Telemetry(name, output, len(units), progress.events)
    reused_rows = one.of.num_rows - missing_rows
    with progress.task(f"{name}: activations", total=one.of.num_rows, done=reused_rows) as task:
        try:
            Execution(
                name=name,
                controller=controller,
                pool=WorkerPool(one.of, limits, actor_class, "collect", calls_at_once=limits.units_in_flight),
                figures=figures,
                task=task,
                progress=progress,
                kept=kept,
                amount=lambda done: done.num_rows,
                first_ready=begin,
                observers=(told, stages),
            ).run()
        finally:
            told.ended()
            aside.add(controller.set_aside, lambda unit: _what(one.of, unit))
    return widths


def _what(one: CollectPass, unit: int) -> str:
    start, stop = layout.unit_rows(unit, one.num_rows, one.record.shard_rows)
    return f"rows {start} to {stop - 1} of {', '.join(one.hook_points)}"
