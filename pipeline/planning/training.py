"""What a train job will read, and the memory that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipeline.order.eligible import token_mask
from pipeline.planning import money
from pipeline.planning.collection import PlannedStore
from pipeline.planning.sizes import row_bytes
from pipeline.store import layout
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.rows import TokenRows
from pipeline.training import engine, memory, schedule
from pipeline.training.checkpoint import Checkpoints
from schemas.collect import Storage
from schemas.errors import MismatchError, nearest
from schemas.plan import Count, JobPlan, PlanAssumptions, TrainPlan
from schemas.train import RowFilter, TrainSpec

_COUNTED_ROWS = 2**25
"""Rows whose tokens are read through to count those that training uses; of larger stores a part is."""
_BUFFERS = 2


@dataclass(frozen=True)
class _Source:
    """What is read: a store that is there, or one that an earlier job will make; or several, joined."""

    rows: Count
    hook_points: dict[str, int]
    row_bytes: dict[str, int]
    """hook point -> bytes of a stored row."""
    value_bytes: dict[str, int]
    """hook point -> bytes of a row in a feed's buffer."""
    chunk_rows: int
    sample: TokenRows
    specials: dict[str, int]
    is_sample_all: bool


def plan_training(spec: TrainSpec, planned: Mapping[str, PlannedStore], assumptions: PlanAssumptions) -> JobPlan:
    """``planned``: URL -> store that an earlier job of the pipeline will make or complete.

    Raises:
        ResourceError: the dictionaries do not fit into memory. MissingError, IncompleteError: a store that is not
        there. MismatchError: joined stores of different token tables.
    """
    source = _source(spec, planned)
    points = [*dict.fromkeys(p for one in spec.dictionaries for p in [*one.sources, *one.target_points])]
    notes: list[str] = []
    _require_memory(spec, source.hook_points, assumptions, notes)
    if spec.rows.max_norm_multiple:
        notes.append("rows left out by max_norm_multiple are counted as read and trained on")
    epoch = _eligible(source, spec.rows)
    rows = schedule.total_rows(spec, max(1, epoch.value))
    steps = schedule.total_steps(rows, max(1, epoch.value), spec.batch_rows)
    done = _steps_done(spec, notes)
    share = max(0, steps - done) / steps
    epochs, ranks, shards = share * rows / max(1, epoch.value), spec.workers.num_workers, spec.workers.latent_shards
    chunks = layout.num_units(source.rows.value, source.chunk_rows)
    read = int(epochs * ranks * source.rows.value * sum(source.row_bytes[point] for point in points))
    gets = int(epochs * ranks * chunks * len(points))
    window = spec.order.window_chunks * source.chunk_rows * sum(source.value_bytes[point] for point in points)
    train = TrainPlan(
        rows_per_epoch=epoch,
        epochs=epochs,
        steps=max(0, steps - done),
        read_bytes=read,
        gets=gets,
        dictionary_bytes={
            one.name: memory.required_bytes([one], source.hook_points, shards) for one in spec.dictionaries
        },
        memory_bytes=memory.required_bytes(spec.dictionaries, source.hook_points, shards),
        window_bytes=_BUFFERS * window * shards // ranks,
    )
    urls = [spec.store] if isinstance(spec.store, str) else [*spec.store.values()]
    is_local = all(Objects(url).is_local for url in urls)
    cost = 0.0 if is_local else money.reading(assumptions.prices, size_bytes=read, gets=gets)
    notes.append("the hours of training are not planned")
    if any(one.end_to_end is not None for one in spec.dictionaries):
        notes.append("end_to_end runs the model on every rank: its memory comes on top of what the dictionaries take")
    return JobPlan(name=spec.name, kind=spec.kind, output=spec.output, train=train, money=cost, notes=notes)


def _source(spec: TrainSpec, planned: Mapping[str, PlannedStore]) -> _Source:
    if isinstance(spec.store, str):
        return _one(spec.store, planned)
    found = {name: _one(url, planned) for name, url in spec.store.items()}
    first = next(iter(found.values()))
    return _Source(
        rows=min((one.rows for one in found.values()), key=lambda rows: rows.value),
        hook_points={f"{name}/{hook}": width for name, one in found.items() for hook, width in one.hook_points.items()},
        row_bytes={f"{name}/{hook}": size for name, one in found.items() for hook, size in one.row_bytes.items()},
        value_bytes={f"{name}/{hook}": size for name, one in found.items() for hook, size in one.value_bytes.items()},
        chunk_rows=first.chunk_rows,
        sample=first.sample,
        specials=first.specials,
        is_sample_all=first.is_sample_all,
    )


def _one(url: str, planned: Mapping[str, PlannedStore]) -> _Source:
    if (found := planned.get(url.rstrip("/"))) is not None:
        return _described(found.rows, found.hook_points, found.storage, found.table.sample, found.table.specials, False)
    store = Store.open(url)
    record = store.record
    storage = Storage(
        layout=record.layout, dtype=record.dtype, lossy=record.lossy, chunk_rows=record.chunk_rows,
        shard_rows=record.shard_rows, codec=record.codec,
    )  # fmt: skip
    rows = Count(value=store.num_rows, basis="exact")
    counted = min(store.num_rows, _COUNTED_ROWS)
    return _described(
        rows, store.hook_points, storage, store.tokens(0, counted), record.specials, counted == store.num_rows
    )


def _described(
    rows: Count,
    hook_points: dict[str, int],
    storage: Storage,
    sample: TokenRows,
    specials: dict[str, int],
    is_sample_all: bool,
) -> _Source:
    stored = {hook: row_bytes(storage, width) for hook, width in hook_points.items()}
    values = {hook: 4 * width for hook, width in hook_points.items()} if storage.lossy else stored
    return _Source(rows, hook_points, stored, values, storage.chunk_rows, sample, specials, is_sample_all)


def _eligible(source: _Source, rows: RowFilter) -> Count:
    share = float(token_mask(source.sample, source.specials, rows, "train").mean())
    is_exact = source.is_sample_all and source.rows.basis == "exact"
    return Count(
        value=round(share * source.rows.value),
        basis="exact" if is_exact else "estimated",
        standard_error=source.rows.standard_error,
    )


def _steps_done(spec: TrainSpec, notes: list[str]) -> int:
    """Steps that an earlier run of the output has taken, whether or not it was the same run: the job itself refuses
    another."""
    if Objects(spec.output).exists(engine.COMPLETE):
        notes.append(f"{spec.output} is trained already")
        return 2**62
    steps = Checkpoints(spec.output).steps()
    if steps:
        notes.append(f"goes on from the checkpoint of step {steps[-1]:,}")
    return steps[-1] if steps else 0


def _require_memory(spec: TrainSpec, widths: dict[str, int], assumptions: PlanAssumptions, notes: list[str]) -> None:
    limits, workers = assumptions.limits, spec.workers
    missing = [p for one in spec.dictionaries for p in [*one.sources, *one.target_points] if p not in widths]
    if missing:
        known = sorted(widths)
        raise MismatchError(
            f"{spec.name}: {spec.store} has no hook point {missing[0]!r}{nearest(missing[0], known)} (known: {known})"
        )
    ranks = limits.ranks_per_node or (1 if workers.use_gpu else workers.num_workers)
    if limits.memory is not None:
        available = limits.memory
    elif workers.use_gpu and not torch.cuda.is_available():
        notes.append("memory is not checked: there is no GPU here; give limits.memory")
        return
    else:
        available = memory.available_bytes(torch.device("cuda" if workers.use_gpu else "cpu"))
    memory.require_memory(
        spec.dictionaries, widths, available=available, ranks_per_node=ranks, latent_shards=workers.latent_shards
    )
