"""A store's own token rows in place of its token table: enough to collect its units again when the table is gone."""

from __future__ import annotations

import numpy as np

from pipeline.store import layout
from pipeline.store.checksums import crc32c_hex
from pipeline.store.objects import Objects
from pipeline.store.rows import TokenRows
from schemas.errors import CorruptionError, MissingError
from schemas.store import ObjectReceipt


class StoreTokens:
    """Rows [0, num_rows) of the units' Parquet files; ``receipts``: unit -> what the ledger says of its file."""

    def __init__(self, objects: Objects, receipts: dict[int, ObjectReceipt], *, shard_rows: int, num_rows: int) -> None:
        self._objects = objects
        self._receipts = receipts
        self._shard_rows = shard_rows
        self._num_rows = num_rows

    def rows(self, start: int, stop: int) -> TokenRows:
        """Rows [start, stop).

        Raises:
            CorruptionError: the file of a unit is damaged or gone, or no ledger entry vouches for it.
        """
        units = range(start // self._shard_rows, layout.num_units(stop, self._shard_rows)) if stop > start else range(0)
        parts = []
        for unit in units:
            first = unit * self._shard_rows
            parts.append(self.unit(unit).slice(max(start - first, 0), stop - first))
        return TokenRows.concat(parts)

    def covering(self, start: int, stop: int) -> tuple[int, int]:
        """``(first, last)``: [start, stop) widened to whole contexts, as far as the store has them: the last context
        may have gone on behind the store's last row. Raises as ``rows``."""
        if start >= stop:
            return start, start
        first = start - int(self.rows(start, start + 1).position[0])
        for unit in range(stop // self._shard_rows, layout.num_units(self._num_rows, self._shard_rows)):
            begin = max(stop, unit * self._shard_rows)
            found = np.flatnonzero(self.unit(unit).position[begin - unit * self._shard_rows :] == 0)
            if len(found):
                return first, begin + int(found[0])
        return first, self._num_rows

    def unit(self, unit: int) -> TokenRows:
        """All rows of one unit. Raises as ``rows``."""
        key = layout.tokens_key(unit)
        where = f"{self._objects.url}/{key}"
        receipt = self._receipts.get(unit)
        if receipt is None:
            raise CorruptionError(f"{where}: expected a ledger entry that names it, got none")
        try:
            data = self._objects.read(key)
        except MissingError as exc:
            raise CorruptionError(f"{where}: expected {receipt.size_bytes} bytes, got no object") from exc
        if crc32c_hex(data) != receipt.crc32c:
            raise CorruptionError(f"{where}: CRC-32C: expected {receipt.crc32c}, got {crc32c_hex(data)}")
        return TokenRows.from_parquet(data, where=where)
