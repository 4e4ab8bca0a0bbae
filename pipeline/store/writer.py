"""Writing a store: units of whole shards, each committed by one ledger entry.

write_unit, in this order (``part`` and ``commit`` are the same in steps, for callers that overlap units):
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
from pipeline.store.joining import join
from pipeline.store.ledger import Ledger, warn_if_different
from pipeline.store.manifests import require_planned, write_manifest
from pipeline.store.objects import Objects
from pipeline.store.rows import TokenRows
from pipeline.store.unit_objects import StoredRows, UnitObjects
from pipeline.store.unit_part import UnitPart, WrittenPart
from pipeline.store.words import Words, stored_dtype
from schemas.errors import MismatchError
from schemas.store import LedgerEntry, Manifest, ObjectReceipt, PassRecord, Rounding, StoreRecord

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
        self.require_unit(unit, arrays, tokens)
        parts = {hook: self.part(unit, hook, tokens) for hook in sorted(arrays)}
        winner = self.ledger.read(unit)
        if winner is not None:
            encoded = (part.of.encode(arrays[hook]) for hook, part in parts.items())
            ours = {name: receipt for one in encoded for name, receipt in one.receipts.items()}
            warn_if_different(self.objects.url, winner, ours, attempt=attempt, worker=worker)
            return winner
        written = {hook: part.create(part.encode(arrays[hook], rounding.get(hook))) for hook, part in parts.items()}
        return self.commit(unit, written, tokens, worker=worker, attempt=attempt, seconds=seconds)

    def part(self, unit: int, hook: str, tokens: TokenRows) -> UnitPart:
        """One hook point of one unit, to be encoded and created by itself; ``tokens``: the unit's n rows."""
        start, stop = self.unit_rows(unit)
        width = self.pass_record.hook_points[hook]
        of = UnitObjects(self.objects, self.record, self.pass_id, unit, hook, width, stop - start)
        return UnitPart(of, self.pass_record, tokens)

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
        """Commit a unit whose ``parts``, of exactly this pass's hook points, are created; the entry that counts.

        Raises:
            MismatchError: the store has other tokens for these rows.
        """
        assert parts.keys() == self.pass_record.hook_points.keys()
        start, stop = self.unit_rows(unit)
        receipts = {name: receipt for hook in sorted(parts) for name, receipt in parts[hook].receipts.items()}
        receipts[layout.TOKENS] = self._put_tokens(unit, tokens)
        entry = LedgerEntry(
            store_fingerprint=self.record.fingerprint,
            pass_id=self.pass_id,
            unit=unit,
            start_row=start,
            num_rows=stop - start,
            objects=receipts,
            statistics={hook: parts[hook].statistics for hook in sorted(parts)},
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

    def require_unit(self, unit: int, arrays: Mapping[str, Words | StoredRows], tokens: TokenRows) -> None:
        """Raises MismatchError where ``write_unit`` would refuse the rows."""
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
