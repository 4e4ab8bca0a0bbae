"""Writers that hand the rows of each unit to somebody else as well, or instead: the way of live training.

Rows are handed over as a store has them, rounded to its precision, one hook point at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from pipeline.collection.prepare import CollectPass
from pipeline.collection.unit import UnitCollector
from pipeline.store import layout
from pipeline.store.objects import Objects
from pipeline.store.rounding import quantise, row_scales
from pipeline.store.rows import TokenRows
from pipeline.store.statistics import measure
from pipeline.store.unit_objects import EncodedRows, StoredRows
from pipeline.store.unit_part import EncodedPart, Measured, UnitPart, WrittenPart
from pipeline.store.words import Words
from pipeline.store.writer import StoreWriter
from schemas.fields import Dtype
from schemas.store import LedgerEntry, PassRecord, StoreRecord

HandOver = Callable[[int, str, StoredRows], None]
"""Gets unit, hook point and rows [n, D]; whoever keeps the rows copies them before it returns."""


@dataclass(frozen=True)
class TeeWriter(StoreWriter):
    """Writes a store, and hands the rows over before they are written."""

    hand_over: HandOver

    @classmethod
    def around(cls, writer: StoreWriter, hand_over: HandOver) -> TeeWriter:
        """``writer`` that hands over, too."""
        return cls(writer.objects, writer.record, writer.pass_record, writer.pass_id, writer.num_rows, hand_over)

    def part(self, unit: int, hook: str, tokens: TokenRows) -> UnitPart:
        plain = super().part(unit, hook, tokens)
        return _TeePart(plain.of, plain.pass_record, plain.tokens, self.hand_over)


@dataclass(frozen=True)
class _TeePart(UnitPart):
    hand_over: HandOver

    def encode(self, *given: Any, **options: Any) -> EncodedPart:
        part = super().encode(*given, **options)
        self.hand_over(self.of.unit, self.of.hook, part.encoded.rows)
        return part


@dataclass(frozen=True)
class BlockWriter(StoreWriter):
    """Hands rows over and writes nothing; an entry says what was measured of them, as a ledger would."""

    hand_over: HandOver

    def part(self, unit: int, hook: str, tokens: TokenRows) -> UnitPart:
        plain = super().part(unit, hook, tokens)
        return _BlockPart(plain.of, plain.pass_record, plain.tokens, self.hand_over)

    def commit(
        self,
        unit: int,
        parts: Mapping[str, WrittenPart],
        tokens: TokenRows,
        *,
        worker: str,
        attempt: int,
        seconds: Mapping[str, float],
    ) -> LedgerEntry:
        """The entry, which nobody keeps."""
        start, stop = self.unit_rows(unit)
        return LedgerEntry(
            store_fingerprint=self.record.fingerprint,
            pass_id=self.pass_id,
            unit=unit,
            start_row=start,
            num_rows=stop - start,
            objects={},
            statistics={hook: parts[hook].statistics for hook in sorted(parts)},
            worker=worker,
            attempt=attempt,
            seconds=dict(seconds),
        )


@dataclass(frozen=True)
class _BlockPart(UnitPart):
    hand_over: HandOver

    def encode(self, array: Words | StoredRows, *given: Any, **options: Any) -> EncodedPart:
        record = self.of.record
        rows = array if isinstance(array, StoredRows) else stored_rows(array, record)
        self.hand_over(self.of.unit, self.of.hook, rows)
        dtype: Dtype = "float32" if record.lossy else record.dtype
        read: Words = rows.values(record.dtype) if record.lossy else rows.words
        return EncodedPart(EncodedRows(array, rows, {}, {}), Measured(measure(read, dtype), None), None)

    def create(self, part: EncodedPart) -> WrittenPart:
        """Nothing is created."""
        return WrittenPart({}, part.measured.statistics)


def stored_rows(array: Words, record: StoreRecord) -> StoredRows:
    """Rows as a store of this record would have them; ``array``: words, or values [n, D] for a lossy one."""
    if not record.lossy:
        return StoredRows(array, None)
    values = np.ascontiguousarray(array, dtype=np.float32)
    scales = row_scales(values, record.dtype)
    return StoredRows(quantise(values, scales, record.dtype), scales)


@dataclass(frozen=True)
class _HandedPass(CollectPass):
    """A pass without a store: where there is none, none is made."""

    hand_over: HandOver = field(kw_only=True)

    def writer(self, widths: Mapping[str, int]) -> StoreWriter:
        """One that hands over."""
        chosen = {hook: widths[hook] for hook in self.hook_points}
        passed = PassRecord(hook_points=chosen, batch_tokens=self.spec.batch_tokens)
        nowhere = Objects("memory://headworks-live")
        return BlockWriter(nowhere, self.record, passed, layout.pass_id(passed), self.num_rows, self.hand_over)


def open_block_collector(one: CollectPass, hand_over: HandOver, *, worker: str) -> UnitCollector:
    """A collector that hands over what it computes and writes nothing. Raises: as ``UnitCollector.open``."""
    facts = {each.name: getattr(one, each.name) for each in fields(one)}
    return UnitCollector.open(_HandedPass(**facts, hand_over=hand_over), worker=worker)


__all__ = ["BlockWriter", "HandOver", "TeeWriter", "open_block_collector", "stored_rows"]
