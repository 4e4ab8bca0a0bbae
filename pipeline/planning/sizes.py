"""Bytes, objects and requests of stores: pure functions of rows, widths and storage.

Activations without a codec in layout ``zarr`` are exact. With a codec they are what it would take without. Token rows
and ledger entries are estimates, a few in a thousand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.collection.units import Units
from pipeline.store.layout import num_units
from pipeline.store.words import stored_dtype
from schemas.collect import StatisticsSpec, Storage
from schemas.fields import Codec

_CRC, _INDEX_ENTRY = 4, 16
_SCALE = 4
# Of Arrow files by whether they have scales: schema and footer, then a record batch's own and its place in the footer.
_ARROW_FILE, _ARROW_BATCH = {False: 1200, True: 1340}, {False: 264, True: 312}
_NPY_HEADER = 128
# Two float64 for each channel as JSON, and for each chunk its checksum.
_LEDGER_CHANNEL, _LEDGER_CHUNK, _LEDGER_ENTRY = 42, 12, 1500
_TOKEN_ROW = 5.0
LEAST_SHARE: dict[Codec, float] = {"none": 1.0, "zstd": 0.6, "bf16": 0.5, "sparse": 0.03}
"""What a codec leaves of the bytes, only ever too low. zstd: below what Blosc with byte shuffle reached on any residual
stream that was measured. bf16: the half of each word that is kept as it is. sparse: a bit for each word of 32."""
KEYS_PER_LIST = 1000
"""Keys in one answer of an object store's listing."""


@dataclass(frozen=True)
class UnitSizes:
    """One whole unit, or a short one."""

    objects: dict[str, int]
    """hook point -> bytes of its objects."""
    tokens: int
    ledger: int
    num_objects: int
    """Everything that is written for it, the ledger's entry included."""

    @property
    def size_bytes(self) -> int:
        return sum(self.objects.values()) + self.tokens + self.ledger


def row_bytes(storage: Storage, width: int) -> int:
    """Bytes of a row of one hook point, before any codec."""
    return width * stored_dtype(storage.dtype).itemsize + (_SCALE if storage.lossy else 0)


def hook_bytes(storage: Storage, width: int, num_rows: int) -> int:
    """Bytes of the objects that hold ``num_rows`` rows of a hook point in one unit."""
    num_chunks = num_units(num_rows, storage.chunk_rows)
    if storage.layout == "arrow":
        return (
            num_rows * row_bytes(storage, width) + num_chunks * _ARROW_BATCH[storage.lossy] + _ARROW_FILE[storage.lossy]
        )
    word = stored_dtype(storage.dtype).itemsize
    size = _shard_bytes(storage, width * word, num_chunks)
    return size + (_shard_bytes(storage, _SCALE, num_chunks) if storage.lossy else 0)


def unit_sizes(storage: Storage, statistics: StatisticsSpec, widths: Mapping[str, int], num_rows: int) -> UnitSizes:
    """Of one unit of a pass."""
    chunks = num_units(num_rows, storage.chunk_rows)
    ledger = _LEDGER_ENTRY + sum(_LEDGER_CHANNEL * width + _LEDGER_CHUNK * chunks for width in widths.values())
    objects = {hook: hook_bytes(storage, width, num_rows) for hook, width in widths.items()}
    per_hook = 2 if storage.lossy and storage.layout == "zarr" else 1
    if statistics.covariance:
        per_hook += 1
        objects = {hook: size + _comoments(widths[hook]) for hook, size in objects.items()}
    return UnitSizes(objects, int(num_rows * _TOKEN_ROW) + 2000, ledger, per_hook * len(widths) + 2)


def covariance_bytes(width: int) -> int:
    """The covariance of all rows of a hook point, which a complete store has once."""
    return width * width * 8 + _NPY_HEADER


def lists_of(num_keys: int) -> int:
    """Listings that name so many keys."""
    return num_units(num_keys, KEYS_PER_LIST)


def short_units(units: Units, num_rows: int, shard_rows: int) -> dict[int, int]:
    """Rows in a unit -> how many of the units have as many: whole ones and the last."""
    last = num_units(num_rows, shard_rows) - 1
    last_rows = num_rows - last * shard_rows
    if units.last != last or last_rows == shard_rows:
        return {shard_rows: len(units)} if units else {}
    return {shard_rows: len(units) - 1, last_rows: 1} if len(units) > 1 else {last_rows: 1}


def _shard_bytes(storage: Storage, row_size: int, num_chunks: int) -> int:
    chunk = storage.chunk_rows * row_size + _CRC
    return num_chunks * chunk + storage.shard_rows // storage.chunk_rows * _INDEX_ENTRY + _CRC


def _comoments(width: int) -> int:
    """A triangle of float64."""
    return width * (width + 1) // 2 * 8 + _NPY_HEADER
