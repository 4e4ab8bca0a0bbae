"""One hook point of one unit on its way into a store: encoded and measured first, created after that.

``encode`` computes and touches no storage, so that a collector can encode one unit while it writes another; ``create``
writes. What both give is a value: parts of one unit may be made by several threads or processes, and one of them
commits them all (``StoreWriter.commit``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.store.comoments import Matrix, comoments, comoments_name, packed, put_comoments
from pipeline.store.parallel import MapBlocks
from pipeline.store.rounding import rounding_error
from pipeline.store.rows import TokenRows
from pipeline.store.statistics import measure
from pipeline.store.unit_objects import EncodedRows, StoredRows, UnitObjects
from pipeline.store.words import Words
from schemas.fields import Dtype
from schemas.store import HookStatistics, ObjectReceipt, PassRecord, Rounding


@dataclass(frozen=True)
class Measured:
    """What is said of a part's rows."""

    statistics: HookStatistics
    comoments: Matrix | None
    """The lower triangle, of passes with ``covariance``."""


@dataclass(frozen=True)
class EncodedPart:
    """A part that is ready to be written. Holds the rows, and their objects' bytes."""

    encoded: EncodedRows
    measured: Measured
    rounding: Rounding | None
    """What was lost before the rows were given."""


@dataclass(frozen=True)
class WrittenPart:
    """A part whose objects are there; picklable and small."""

    receipts: Mapping[str, ObjectReceipt]
    """Name in the ledger entry -> receipt."""
    statistics: HookStatistics


@dataclass(frozen=True)
class UnitPart:
    """One hook point of one unit of a store. Holds facts only; every method may be called from any thread."""

    of: UnitObjects
    pass_record: PassRecord
    tokens: TokenRows
    """The unit's n rows."""

    def encode(
        self, array: Words | StoredRows, rounding: Rounding | None = None, *, each: MapBlocks = map
    ) -> EncodedPart:
        """``array``, ``rounding``: as ``StoreWriter.write_unit`` takes them. ``each`` maps over blocks of rows, which
        threads may share; the result is the same."""
        encoded = self.of.encode(array, each)
        return EncodedPart(encoded, self._measured(array, encoded.rows, rounding, each), rounding)

    def create(self, part: EncodedPart) -> WrittenPart:
        """Create the objects, or take over what an earlier attempt left and describe that."""
        receipts, rows = self.of.create(part.encoded)
        measured = part.measured
        if rows.words is not part.encoded.rows.words:
            measured = self._measured(part.encoded.given, rows, part.rounding)
        hook = self.of.hook
        if measured.comoments is not None:
            receipts[comoments_name(hook)] = put_comoments(self.of.objects, self.of.unit, hook, measured.comoments)
        return WrittenPart(receipts, measured.statistics)

    def _measured(
        self, array: Words | StoredRows, rows: StoredRows, rounding: Rounding | None, each: MapBlocks = map
    ) -> Measured:
        """Of readable words, or of a lossy store of the values that readers will see."""
        record = self.of.record
        dtype: Dtype = "float32" if record.lossy else record.dtype
        read: Words = rows.values(record.dtype) if record.lossy else rows.words
        found = measure(read, dtype, tokens=self.tokens, outlier_tokens=self.pass_record.outlier_tokens, each=each)
        if record.lossy and not isinstance(array, StoredRows):
            found = found.model_copy(update={"rounding": rounding_error(array, read)})
        if rounding is not None:
            found = found.model_copy(update={"rounding": rounding})
        triangle = packed(comoments(read, dtype, found)) if self.pass_record.covariance else None
        return Measured(found, triangle)
