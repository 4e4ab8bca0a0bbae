"""Writing an exported store, unit by unit: a unit that the new store's ledger has is not read again.

Memory is that of one unit of one pass: its words, and float32 values of one hook point while they are converted (of all
of them where the new store is lossy, since its writer rounds).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.exporting.conversion import is_exact, narrowed, value_dtype, widened
from pipeline.exporting.prepare import ExportJob
from pipeline.exporting.selection import Rows, is_aligned
from pipeline.planning.sizes import LEAST_SHARE
from pipeline.planning.space import require_free
from pipeline.store import layout
from pipeline.store.leases import held
from pipeline.store.objects import Objects
from pipeline.store.rounding import Scales, rounding_error
from pipeline.store.rows import TokenRows
from pipeline.store.unit_objects import StoredRows
from pipeline.store.words import Floats, Words, stored_dtype, to_float32
from pipeline.store.writer import StoreWriter
from schemas.fields import LOSSY
from schemas.store import LedgerEntry, Manifest, Rounding

Advance = Callable[[int, int], None]
"""Told the rows and bytes of every unit that was written."""


def rewrite(job: ExportJob, *, begin: Callable[[int, int], None], advance: Advance) -> Manifest:
    """Write what is missing of the new store, and its manifest.

    ``begin`` is told how many rows, over all passes, there will be and how many are there already.

    Raises:
        MismatchError: the store at the output was made from other facts. CorruptionError: stored bytes of the source
        are not what its ledger says; nothing of the unit is written then. ResourceError: the disk is full.
    """
    writers = job.writers()
    missing = [(writer, _missing(writer)) for writer in writers]
    rows = [stop - start for writer, units in missing for start, stop in map(writer.unit_rows, units)]
    total = len(writers) * job.rows.num_rows
    _require_room(job, missing)
    begin(total, total - sum(rows))
    with held(writers[0].objects, "export"):
        for writer, units in missing:
            for unit in units:
                entry = _write(job, writer, unit)
                # Maps of what is behind would look like memory in use.
                job.source.release()
                advance(entry.num_rows, sum(receipt.size_bytes for receipt in entry.objects.values()))
        return [writer.finish() for writer in writers][-1]


def _require_room(job: ExportJob, missing: list[tuple[StoreWriter, list[int]]]) -> None:
    """Raises ResourceError where the disk cannot hold what is missing."""
    record, needed = job.record, 0
    word, scale = stored_dtype(record.dtype).itemsize, 4 if record.lossy else 0
    for writer, units in missing:
        row_size = sum(width * word + scale for width in writer.pass_record.hook_points.values())
        needed += row_size * sum(stop - start for start, stop in map(writer.unit_rows, units))
    require_free(Objects(job.spec.output), int(needed * LEAST_SHARE[record.codec]), f"{job.rows.num_rows:,} rows")


def _missing(writer: StoreWriter) -> list[int]:
    committed = {*writer.committed_units()}
    return [unit for unit in range(writer.num_units) if unit not in committed]


def _write(job: ExportJob, writer: StoreWriter, unit: int) -> LedgerEntry:
    started = time.perf_counter()
    start, stop = writer.unit_rows(unit)
    rows = job.rows.rows(start, stop)
    arrays: dict[str, Words | StoredRows] = {}
    rounding: dict[str, Rounding] = {}
    for hook in writer.pass_record.hook_points:
        arrays[hook], lost = _converted(job, hook, rows)
        if lost is not None:
            rounding[hook] = lost
    tokens = _tokens(job, rows, start)
    read = time.perf_counter() - started
    return writer.write_unit(
        unit, arrays, tokens, worker="export", attempt=0, seconds={"read": read}, rounding=rounding
    )


def _converted(job: ExportJob, hook: str, rows: Rows) -> tuple[Words | StoredRows, Rounding | None]:
    """What the writer takes, and what was lost before it gets it."""
    source, dtype = job.source, job.record.dtype
    if source.dtype == dtype:
        if not source.record.lossy:
            return _words(job, hook, rows), _lost_before(job, hook, rows)
        return StoredRows(_words(job, hook, rows), _scales(job, hook, rows)), _lost_before(job, hook, rows)
    values = _values(job, hook, rows)
    if dtype in LOSSY:
        return values, None
    words = narrowed(values, dtype)
    if is_exact(value_dtype(source.record), dtype):
        return words, _lost_before(job, hook, rows)
    return words, rounding_error(values, to_float32(words, dtype))


def _lost_before(job: ExportJob, hook: str, rows: Rows) -> Rounding | None:
    """What the source says that it had lost of these very rows: of whole units only."""
    source, size = job.source, job.source.record.shard_rows
    start, stop = _bounds(rows)
    unit = start // size
    if not _consecutive(rows) or (start, stop) != layout.unit_rows(unit, source.num_rows, size):
        return None
    owner = next(pass_ for pass_, one in source.passes.items() if hook in one.hook_points)
    return source.entry(owner, unit).statistics[hook].rounding


def _values(job: ExportJob, hook: str, rows: Rows) -> Floats:
    source = job.source
    if not source.record.lossy:
        return widened(_words(job, hook, rows), source.dtype)
    return source.read_values(hook, *_bounds(rows)) if _consecutive(rows) else source.gather_values(hook, rows)


def _scales(job: ExportJob, hook: str, rows: Rows) -> Scales:
    """[n], read as one range: four bytes a row."""
    start, stop = _bounds(rows)
    return job.source.read_scales(hook, start, stop)[rows - start]


def _words(job: ExportJob, hook: str, rows: Rows) -> Words:
    source = job.source
    return source.read_rows(hook, *_bounds(rows)) if _consecutive(rows) else source.gather(hook, rows)


def _tokens(job: ExportJob, rows: Rows, start: int) -> TokenRows:
    """The rows' tokens under their numbers in the export; where those are others, with the rows that they were."""
    first, last = _bounds(rows)
    held_rows = job.source.tokens(first, last)
    changes: dict[str, Any] = {name: getattr(held_rows, name)[rows - first] for name in _KEPT}
    was = held_rows.row if held_rows.source_row is None else held_rows.source_row
    keeps_source = held_rows.source_row is not None or not is_aligned(job.spec.rows)
    numbers = np.arange(start, start + len(rows))
    return TokenRows(row=numbers, **changes, source_row=was[rows - first] if keeps_source else None)


_KEPT = ("token_id", "document_id", "position", "held_out")


def _consecutive(rows: Rows) -> bool:
    return bool(rows[-1] - rows[0] == len(rows) - 1)


def _bounds(rows: Rows) -> tuple[int, int]:
    return int(rows[0]), int(rows[-1]) + 1
