"""What a collect job will make: rows, bytes, objects, requests, hours, and whether keeping it pays.

Reads the corpus's file list and a sample of it, the model's configuration, and what the store has; writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.collection.inputs import open_forward
from pipeline.collection.overlap import ENCODED_WAITING, UNITS_HELD
from pipeline.collection.passes import plan_passes
from pipeline.collection.prepare import require_same_batches, store_events, store_record
from pipeline.collection.units import Units
from pipeline.models.gradients import needs_head
from pipeline.models.load import load_model
from pipeline.planning import money
from pipeline.planning.model import Sketch, measure, sketch
from pipeline.planning.placement import placement_note
from pipeline.planning.remarks import source_notes
from pipeline.planning.sizes import UnitSizes, covariance_bytes, lists_of, row_bytes, short_units, unit_sizes
from pipeline.planning.table import PlannedTable, planned_table
from pipeline.store import layout
from pipeline.store.ledger import Ledger
from pipeline.store.log import opened_passes
from pipeline.store.objects import Objects
from pipeline.tokens.patches import PatchGrid
from pipeline.tokens.table import load_spec_tokenizer, packed_spec
from schemas.collect import CollectSpec, Storage
from schemas.errors import ModelError
from schemas.plan import Count, JobPlan, PlanAssumptions, StorePlan, TimePlan
from schemas.store import PassRecord

_SECONDS_PER_HOUR = 3600.0
# Group and array documents, the log, the manifest: a few for the store and two for each hook point.
_DOCUMENTS, _DOCUMENTS_PER_HOOK = 6, 2


@dataclass(frozen=True)
class PlannedStore:
    """What later jobs of a pipeline must know of a store that is yet to be."""

    table: PlannedTable
    rows: Count
    hook_points: dict[str, int]
    storage: Storage


@dataclass(frozen=True)
class _Missing:
    """Hook points that one pass lacks over some units."""

    hook_points: dict[str, int]
    units: Units


def plan_collection(
    spec: CollectSpec, assumptions: PlanAssumptions, *, measured: bool, table: PlannedTable | None = None
) -> tuple[JobPlan, PlannedStore]:
    """``measured``: where no rate is given, run the real model for a few seconds. ``table``: the job's own, digested,
    where the caller has it.

    Raises:
        MismatchError: the store or table at the output was made from other facts. HookPointError, ModelError,
        CorpusError, MissingError, SpecError: as the job would.
    """
    objects = Objects(spec.output)
    is_there = objects.exists(layout.ROOT)
    table = table or planned_table(spec, digested=is_there)
    notes: list[str] = []
    forward = _sketch(spec, table, notes)
    notes.extend(source_notes(spec, forward, _context_length(spec)))
    notes.append(placement_note(spec))
    wanted, found = _missing(spec, table, forward.widths, objects if is_there else None)
    rows = table.rows if found == table.rows.value else Count(value=found, basis="exact")
    store = _store(spec, rows, wanted, forward, objects)
    time = _time(spec, assumptions, store, table, measured=measured)
    if time is None:
        notes.append("no rate, so no hours nor money: give rates.tokens_per_s or rates.flop_per_s, or --measure")
    job = JobPlan(name=spec.name, kind=spec.kind, output=spec.output, store=store, time=time, notes=notes)
    job = _priced(spec, job, rows, forward, assumptions)
    return job, PlannedStore(table, rows, forward.widths, spec.storage)


def _sketch(spec: CollectSpec, table: PlannedTable, notes: list[str]) -> Sketch:
    """By configuration; by loading the weights where the network's code does not run without them."""
    longest, image_size = _context_length(spec), _image_size(spec)
    length = min(table.mean_context, longest)
    try:
        return sketch(spec.model, spec.hook_points, length, longest=longest, image_size=image_size)
    except ModelError as error:
        notes.append(f"operations are not counted: {error}")
        loaded = load_model(spec.model, with_head=needs_head(spec.hook_points))
        return Sketch(open_forward(loaded, spec, spec.hook_points).widths, 0.0)


def _context_length(spec: CollectSpec) -> int:
    return packed_spec(spec.tokens, load_spec_tokenizer(spec.tokens, spec.model)).packing.context_length


def _image_size(spec: CollectSpec) -> int:
    tokenizer = load_spec_tokenizer(spec.tokens, spec.model)
    return tokenizer.image.size if isinstance(tokenizer, PatchGrid) else 0


def _missing(
    spec: CollectSpec, table: PlannedTable, widths: Mapping[str, int], there: Objects | None
) -> tuple[list[_Missing], int]:
    """What each pass lacks, and the rows that the store will have."""
    shard_rows = spec.storage.shard_rows
    if there is None:
        units = Units.missing(layout.num_units(table.rows.value, shard_rows), [])
        return [_Missing({hook: widths[hook] for hook in spec.hook_points}, units)], table.rows.value
    record = store_record(spec, table)
    events = store_events(there, record)
    require_same_batches(spec, opened_passes(events))
    plan = plan_passes(events, spec.hook_points, table.rows.value)
    num_units = layout.num_units(plan.num_rows, shard_rows)
    found = [_Missing(dict(one.hook_points), _lacking(one, there, record.fingerprint, num_units)) for one in plan.begun]
    if plan.missing:
        found.append(_Missing({hook: widths[hook] for hook in plan.missing}, Units.missing(num_units, [])))
    return found, plan.num_rows


def _lacking(one: PassRecord, objects: Objects, fingerprint: str, num_units: int) -> Units:
    return Units.missing(num_units, Ledger(objects, layout.pass_id(one), fingerprint).units())


def _store(spec: CollectSpec, rows: Count, wanted: list[_Missing], forward: Sketch, objects: Objects) -> StorePlan:
    storage, shard_rows = spec.storage, spec.storage.shard_rows
    per_hook: dict[str, int] = {}
    object_bytes: dict[str, int] = {}
    missing_rows = size = num_objects = units = 0
    for index, one in enumerate(wanted):
        for unit_rows, count in short_units(one.units, rows.value, shard_rows).items():
            made = _unit(spec, one.hook_points, unit_rows)
            missing_rows += count * unit_rows
            units += count
            # Token rows are one object for all passes; whichever comes first writes it.
            tokens = made.tokens if index == 0 else 0
            size += count * (made.size_bytes - made.tokens + tokens)
            num_objects += count * (made.num_objects - (index > 0))
            for hook, hook_size in made.objects.items():
                per_hook[hook] = per_hook.get(hook, 0) + count * hook_size
        if one.units:
            object_bytes |= _unit(spec, one.hook_points, shard_rows).objects
    documents = _DOCUMENTS + _DOCUMENTS_PER_HOOK * len(per_hook) if units else 0
    if spec.statistics.covariance:
        hooks = {hook: width for one in wanted if one.units for hook, width in one.hook_points.items()}
        size += sum(covariance_bytes(width) for width in hooks.values())
        num_objects += len(hooks)
    is_sized = rows.basis == "exact" and storage.codec == "none" and storage.layout == "zarr"
    basis = {"basis": "exact" if is_sized else "estimated", "standard_error": rows.standard_error}
    there = sum(objects.sizes().values())
    return StorePlan(
        rows=rows,
        missing_rows=rows.model_copy(update={"value": missing_rows}),
        units=units,
        hook_points={hook: width for one in wanted if one.units for hook, width in one.hook_points.items()},
        bytes_per_hook_point=per_hook,
        size_bytes=Count.model_validate({"value": size, **basis}),
        total_bytes=Count.model_validate({"value": there + size, **basis}),
        objects=num_objects + documents,
        object_bytes=object_bytes,
        puts=num_objects + documents,
        gets=units,
        lists=lists_of(num_objects + documents) + len(wanted),
        flop=forward.flop_per_token * missing_rows,
        unit_memory_bytes=_unit_memory(storage, wanted) + int(forward.kept_bytes_per_token * spec.batch_tokens),
    )


def _unit(spec: CollectSpec, widths: Mapping[str, int], num_rows: int) -> UnitSizes:
    return unit_sizes(spec.storage, spec.statistics, widths, num_rows)


def _unit_memory(storage: Storage, wanted: list[_Missing]) -> int:
    """Rows of all hook points of a pass, of every unit that is under way, and some hook points encoded."""
    sizes = [[row_bytes(storage, width) for width in one.hook_points.values()] for one in wanted if one.units]
    rows_bytes = (UNITS_HELD * sum(one) + (ENCODED_WAITING + 2) * max(one) for one in sizes)
    return max((storage.shard_rows * row_bytes for row_bytes in rows_bytes), default=0)


def _time(
    spec: CollectSpec, assumptions: PlanAssumptions, store: StorePlan, table: PlannedTable, *, measured: bool
) -> TimePlan | None:
    rates, rows = assumptions.rates, store.missing_rows.value
    flop_per_token = store.flop / rows if rows else 0.0
    if rates.tokens_per_s is not None:
        rate, basis = rates.tokens_per_s, "given"
    elif rates.flop_per_s is not None and flop_per_token:
        rate, basis = rates.flop_per_s * rates.num_devices / flop_per_token, "operations"
    elif measured and rows:
        rate, basis = _measured(spec, table), "measured"
    else:
        return None
    if rates.storage_bytes_per_s is not None and rows:
        bound = rates.storage_bytes_per_s / (store.size_bytes.value / rows)
        rate, basis = (bound, "storage") if bound < rate else (rate, basis)
    hours = rows / rate / _SECONDS_PER_HOUR
    facts = {"hours": hours, "device_hours": hours * rates.num_devices, "tokens_per_s": rate, "basis": basis}
    return TimePlan.model_validate(facts)


def _measured(spec: CollectSpec, table: PlannedTable) -> float:
    """One replica here, times the replicas that the job would start here."""
    workers, length = spec.workers, _context_length(spec)
    batch = max(1, spec.batch_tokens // length)
    ids = np.resize(table.sample.token_id.astype(np.int64), (batch, length))
    threads = max(1, int(workers.cpus_per_worker))
    rate = measure(spec.model, spec.hook_points, ids, num_threads=threads, image_size=_image_size(spec))
    fits = [(os.cpu_count() or 1) / workers.cpus_per_worker]
    if workers.gpus_per_worker:
        fits.append(torch.cuda.device_count() / workers.gpus_per_worker)
    return rate * (workers.num_workers or max(1, int(min(fits))))


def _priced(spec: CollectSpec, job: JobPlan, rows: Count, forward: Sketch, assumptions: PlanAssumptions) -> JobPlan:
    """With money, and the break-even of the whole store with the spec's hook points."""
    prices, store, time = assumptions.prices, job.store, job.time
    assert store is not None
    keep = money.keeping(prices, size_bytes=store.total_bytes.value, months=assumptions.months)
    put = money.requests(store.puts, prices.put_thousand)
    compute = money.computing(prices, time.device_hours) if time is not None else None
    whole = _whole(spec, rows, forward.widths)
    collect = None
    if time is not None:
        hours = rows.value / time.tokens_per_s / _SECONDS_PER_HOUR
        collect = money.computing(prices, hours * assumptions.rates.num_devices)
    chunks = layout.num_units(rows.value, spec.storage.chunk_rows)
    reuse = money.reuse(
        collect=collect,
        write=money.requests(whole.num_objects, prices.put_thousand),
        keep=money.keeping(prices, size_bytes=whole.size_bytes, months=assumptions.months),
        read=money.reading(prices, size_bytes=sum(whole.objects.values()), gets=chunks * len(spec.hook_points)),
    )
    return job.model_copy(update={"reuse": reuse, "money": money.total(compute, put, keep)})


def _whole(spec: CollectSpec, rows: Count, widths: Mapping[str, int]) -> UnitSizes:
    """All units of the spec's hook points added up."""
    shard_rows = spec.storage.shard_rows
    units = Units.missing(layout.num_units(rows.value, shard_rows), [])
    made = [
        (_unit(spec, {hook: widths[hook] for hook in spec.hook_points}, unit_rows), count)
        for unit_rows, count in short_units(units, rows.value, shard_rows).items()
    ]
    objects = {hook: sum(one.objects[hook] * count for one, count in made) for hook in spec.hook_points}
    return UnitSizes(
        objects,
        sum(one.tokens * count for one, count in made),
        sum(one.ledger * count for one, count in made),
        sum(one.num_objects * count for one, count in made),
    )
