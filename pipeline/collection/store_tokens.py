"""Token rows for collecting units again: from the store's token table, or from the store's own copy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.store import layout
from pipeline.store.checksums import crc32c_hex
from pipeline.store.objects import Objects
from pipeline.store.rows import TokenRows
from pipeline.tokens.table import TokenTable
from schemas.errors import CorruptionError, HeadworksError, MissingError
from schemas.store import ObjectReceipt, StoreRecord


def open_table(record: StoreRecord, *, num_rows: int, url: str = "") -> tuple[TokenTable | None, str]:
    """The store's token table, at ``url`` if it is not where it was; or None and why."""
    url = url or record.table_url
    try:
        table = TokenTable.open(url)
    except HeadworksError as exc:
        return None, str(exc)
    if table.fingerprint != record.table_fingerprint:
        return None, f"the token table at {url} is another one ({table.fingerprint})"
    if table.num_written_rows < num_rows:
        return None, f"the token table at {url} has only {table.num_written_rows} rows"
    return table, ""


class StoreTokens:
    """Rows [0, num_rows) of the units' Parquet files; ``receipt``: what the ledger says of a unit's file, None if no
    entry vouches for it."""

    def __init__(
        self, objects: Objects, receipt: Callable[[int], ObjectReceipt | None], *, shard_rows: int, num_rows: int
    ) -> None:
        self._objects = objects
        self._receipt = receipt
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
        receipt = self._receipt(unit)
        if receipt is None:
            raise CorruptionError(f"{where}: expected a ledger entry that names it, got none")
        try:
            data = self._objects.read(key)
        except MissingError as exc:
            raise CorruptionError(f"{where}: expected {receipt.size_bytes} bytes, got no object") from exc
        if crc32c_hex(data) != receipt.crc32c:
            raise CorruptionError(f"{where}: CRC-32C: expected {receipt.crc32c}, got {crc32c_hex(data)}")
        return TokenRows.from_parquet(data, where=where)
