"""Writing a store: units of whole shards, each committed by one ledger entry.

write_unit, in this order:
 1. encode each hook point's rows and create their objects (put-if-absent; objects are never replaced),
 2. create the object of the token rows, or find that another pass has,
 3. create the ledger entry. From here on the unit exists.

A process that dies before 3 leaves objects that no ledger names. The next attempt at the unit meets them: equal bytes
are kept. Where the bytes differ (other hardware can differ in low bits) the attempt goes over to the bytes that are
there, so that two attempts at the same time always end in one consistent unit, whichever commits.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from pipeline.store import layout
from pipeline.store.checksums import crc32c_hex
from pipeline.store.comoments import comoments_name, put_comoments
from pipeline.store.joining import join
from pipeline.store.ledger import Ledger, warn_if_different
from pipeline.store.manifests import require_planned, write_manifest
from pipeline.store.objects import Objects
from pipeline.store.rounding import rounding_error
from pipeline.store.rows import TokenRows
from pipeline.store.statistics import measure
from pipeline.store.unit_objects import StoredRows, UnitObjects
from pipeline.store.words import Words, stored_dtype
from schemas.errors import MismatchError
from schemas.fields import Dtype
from schemas.store import HookStatistics, LedgerEntry, Manifest, ObjectReceipt, PassRecord, Rounding, StoreRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreWriter:
    """One pass over one store. Holds no state but facts: picklable, and any number may write at once."""

    objects: Objects
    record: StoreRecord
    """What the store itself says, made by this job or an earlier one."""
    pass_record: PassRecord
    pass_id: str
    num_rows: int
    """Rows of this job's plan."""

    @classmethod
    def open(cls, url: str, record: StoreRecord, pass_record: PassRecord, *, num_rows: int) -> StoreWriter:
        """Create the store and the pass at ``url``, or join them; see ``joining.join`` for what is refused.

        Raises:
            MismatchError: another identity, hook points of another pass, or rows that do not fit. SpecError.
        """
        objects = Objects(url)
        found = join(objects, record, pass_record, num_rows)
        return cls(objects, found, pass_record, layout.pass_id(pass_record), num_rows)

    @property
    def num_units(self) -> int:
        return layout.num_units(self.num_rows, self.record.shard_rows)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.objects, self.pass_id, self.record.fingerprint)

    def unit_rows(self, unit: int) -> tuple[int, int]:
        """Rows [start, stop) of the unit."""
        if not 0 <= unit < self.num_units:
            raise ValueError(f"unit {unit} is not one of the {self.num_units} units of {self.objects.url}")
        return layout.unit_rows(unit, self.num_rows, self.record.shard_rows)

    def committed_units(self) -> list[int]:
        """Units of this plan that need not be computed, by one listing."""
        return [unit for unit in self.ledger.units() if unit < self.num_units]

    def committed(self) -> dict[int, LedgerEntry]:
        """unit -> entry of every unit of this plan that need not be computed.

        Raises:
            MismatchError: a last unit of another length, from a job with another number of rows.
        """
        entries = {entry.unit: entry for entry in self.ledger.entries(self.committed_units())}
        for entry in entries.values():
            require_planned(entry, self.num_rows, self.record.shard_rows, self.objects.url)
        return entries

    def write_unit(
        self,
        unit: int,
        arrays: Mapping[str, Words | StoredRows],
        tokens: TokenRows,
        *,
        worker: str,
        attempt: int,
        seconds: Mapping[str, float],
        rounding: Mapping[str, Rounding] = MappingProxyType({}),
    ) -> LedgerEntry:
        """Write one unit and commit it; the entry that counts, an earlier attempt's if there was one.

        ``arrays``: hook point -> stored words [n, D] of exactly this pass's hook points; of a lossy store float32
        values [n, D], which are rounded here, or rows that were rounded before. ``tokens``: the unit's n rows. The
        caller keeps both. Bytes that differ from an earlier attempt's are logged (``store.unit_differs``).
        ``rounding``: hook point -> what was lost before, where the caller has rounded or has rounded rows.

        Raises:
            MismatchError: shapes, types or rows are not the unit's, or the store has other tokens for these rows.
            ResourceError: the disk is full; nothing of the unit is committed.
        """
        self._require_unit(unit, arrays, tokens)
        winner = self.ledger.read(unit)
        if winner is not None:
            warn_if_different(self.objects.url, winner, self._encoded(unit, arrays), attempt=attempt, worker=worker)
            return winner
        start, stop = self.unit_rows(unit)
        receipts: dict[str, ObjectReceipt] = {}
        statistics: dict[str, HookStatistics] = {}
        for hook in sorted(arrays):
            made, words, dtype, statistics[hook] = self._put_rows(unit, hook, arrays[hook], tokens)
            if hook in rounding:
                statistics[hook] = statistics[hook].model_copy(update={"rounding": rounding[hook]})
            receipts |= made
            if self.pass_record.covariance:
                receipts[comoments_name(hook)] = put_comoments(self.objects, unit, hook, words, dtype, statistics[hook])
        receipts[layout.TOKENS] = self._put_tokens(unit, tokens)
        entry = LedgerEntry(
            store_fingerprint=self.record.fingerprint,
            pass_id=self.pass_id,
            unit=unit,
            start_row=start,
            num_rows=stop - start,
            objects=receipts,
            statistics=statistics,
            worker=worker,
            attempt=attempt,
            seconds=dict(seconds),
        )
        return self.ledger.commit(entry)

    def finish(self) -> Manifest:
        """Write the manifest once every unit is committed; calling it again changes nothing.

        Raises:
            IncompleteError: names the units that are missing. CorruptionError: a committed object has gone.
        """
        return write_manifest(self.objects, self.record, self.num_rows, required=self.pass_id)

    def _require_unit(self, unit: int, arrays: Mapping[str, Words | StoredRows], tokens: TokenRows) -> None:
        start, stop = self.unit_rows(unit)
        stored, floats = stored_dtype(self.record.dtype), np.dtype("<f4")
        expected = {}
        for hook, width in self.pass_record.hook_points.items():
            is_given_values = self.record.lossy and not isinstance(arrays.get(hook), StoredRows)
            expected[hook] = ((stop - start, width), floats if is_given_values else stored)
        words = {hook: one.words if isinstance(one, StoredRows) else one for hook, one in arrays.items()}
        got = {hook: (one.shape, one.dtype) for hook, one in words.items()}
        if got != expected:
            raise MismatchError(f"unit {unit} of {self.objects.url}: expected arrays {expected}, got {got}")
        if not np.array_equal(tokens.row, np.arange(start, stop)):
            found = f"{len(tokens)} rows" + (f" from {tokens.row[0]}" if len(tokens) else "")
            raise MismatchError(
                f"unit {unit} of {self.objects.url}: expected token rows [{start}, {stop}), got {found}"
            )

    def _of_unit(self, unit: int, hook: str) -> UnitObjects:
        start, stop = self.unit_rows(unit)
        width = self.pass_record.hook_points[hook]
        return UnitObjects(self.objects, self.record, self.pass_id, unit, hook, width, stop - start)

    def _encoded(self, unit: int, arrays: Mapping[str, Words | StoredRows]) -> dict[str, ObjectReceipt]:
        """What this attempt would have written."""
        made = [self._of_unit(unit, hook).receipts_of(array) for hook, array in arrays.items()]
        return {name: receipt for receipts in made for name, receipt in receipts.items()}

    def _put_rows(
        self, unit: int, hook: str, array: Words | StoredRows, tokens: TokenRows
    ) -> tuple[dict[str, ObjectReceipt], Words, Dtype, HookStatistics]:
        """Create the objects; receipts, rows and statistics of what is there then: readable words, or of a lossy store
        the values that readers will see."""
        receipts, rows = self._of_unit(unit, hook).put(array)
        dtype: Dtype = "float32" if self.record.lossy else self.record.dtype
        read: Words = rows.values(self.record.dtype) if self.record.lossy else rows.words
        found = measure(read, dtype, tokens=tokens, outlier_tokens=self.pass_record.outlier_tokens)
        if self.record.lossy and not isinstance(array, StoredRows):
            found = found.model_copy(update={"rounding": rounding_error(array, read)})
        return receipts, read, dtype, found

    def _put_tokens(self, unit: int, tokens: TokenRows) -> ObjectReceipt:
        """Create the object or find that an earlier attempt or pass has, whose rows must be the same."""
        key = layout.tokens_key(unit)
        data = tokens.to_parquet()
        if not self.objects.create(key, data):
            data = self.objects.read(key)
            if TokenRows.from_parquet(data, where=f"{self.objects.url}/{key}") != tokens:
                raise MismatchError(
                    f"{self.objects.url}/{key} has other tokens for the same rows: the token table has changed. "
                    "Choose another output."
                )
        return ObjectReceipt(key=key, size_bytes=len(data), crc32c=crc32c_hex(data))
