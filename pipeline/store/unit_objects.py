"""The objects that hold one hook point's rows of one unit, in the layout of the store: opened, checked, created.

| layout | lossless | lossy |
|---|---|---|
| ``zarr`` | one shard of words | a shard of scales, then one of words |
| ``arrow`` | one Arrow file | one Arrow file with both |

Objects are created put-if-absent. Where other bytes are there already, left by an attempt that never committed, they
are taken over. The words of a lossy store in layout ``zarr`` are always those of the scales that are there, because
every attempt creates the scales first and rounds with what it finds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from pipeline.store import layout
from pipeline.store.arrow_file import ArrowFile, ArrowGeometry, Located, encode_arrow, locate
from pipeline.store.checksums import crc32c_hex, crc32c_of_chunks
from pipeline.store.chunks import RowReader
from pipeline.store.objects import Data, Objects
from pipeline.store.parallel import MapBlocks
from pipeline.store.rounding import Scales, dequantise, quantise, row_scales
from pipeline.store.shard import Geometry, ShardReader, encode_shard, stored_chunk_crcs
from pipeline.store.sources import Source, open_source
from pipeline.store.words import Floats, Words, stored_dtype, to_float32
from schemas.errors import CorruptionError, MismatchError
from schemas.fields import Dtype
from schemas.store import ObjectReceipt, StoreRecord

Held = TypeVar("Held")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredRows:
    """Rows as a store has them."""

    words: Words
    """[n, D]."""
    scales: Scales | None
    """[n], of lossy dtypes."""

    def values(self, dtype: Dtype) -> Floats:
        """[n, D] float32, as readers will see them."""
        return to_float32(self.words, dtype) if self.scales is None else dequantise(self.words, self.scales, dtype)


@dataclass(frozen=True)
class EncodedRows:
    """One hook point's rows of one unit and the objects that they make; nothing is written yet."""

    given: Words | StoredRows
    """What was encoded. The caller keeps it, unchanged until it is written."""
    rows: StoredRows
    data: Mapping[str, Data]
    """Name in the ledger entry -> bytes of the object."""
    receipts: Mapping[str, ObjectReceipt]
    """By the same names."""

    @property
    def size_bytes(self) -> int:
        """Of all objects."""
        return sum(receipt.size_bytes for receipt in self.receipts.values())


@dataclass(frozen=True)
class UnitRows:
    """Readers of one hook point's rows in one unit."""

    words: RowReader
    scales: RowReader | None
    """[n, 1], of lossy stores."""

    def read(self, start: int, stop: int) -> StoredRows:
        """Rows [start, stop) of the unit; views where one chunk of a mapped file has them."""
        words = self.words.rows(start, stop)
        return StoredRows(words, None if self.scales is None else self.scales.rows(start, stop)[:, 0])


@dataclass(frozen=True)
class UnitObjects:
    """One hook point of one unit of a store. Cheap to make; holds facts only."""

    objects: Objects
    record: StoreRecord
    pass_id: str
    unit: int
    hook: str
    width: int
    """D."""
    num_rows: int
    """n."""

    @property
    def keys(self) -> dict[str, str]:
        """Name in the ledger entry -> key."""
        return layout.unit_keys(self.record, self.hook, self.unit)

    def open(self, receipts: Mapping[str, ObjectReceipt], verified: set[int]) -> UnitRows:
        """Readers of the objects that the unit's receipts name, their lengths compared. ``verified`` is the caller's
        set of chunks that have passed and need no further check.

        Raises:
            CorruptionError: a receipt or an object is not there, or of another length.
        """
        sources = {name: self._source(receipts, name) for name in self.keys}
        receipt = receipts[self.hook]
        if self.record.layout == "arrow":
            file = self._arrow(sources[self.hook], receipt, verified)
            return UnitRows(file.words, file.scales)
        words = ShardReader(
            sources[self.hook],
            layout.geometry(self.record, self.width),
            self.num_rows,
            chunk_crcs=receipt.chunk_crc32c,
            verified=verified,
        )
        if not self.record.lossy:
            return UnitRows(words, None)
        name = layout.scales_name(self.hook)
        geometry = layout.scale_geometry(self.record)
        crcs = receipts[name].chunk_crc32c
        return UnitRows(words, ShardReader(sources[name], geometry, self.num_rows, chunk_crcs=crcs))

    def _source(
        self, receipts: Mapping[str, ObjectReceipt], name: str, opened: Callable[..., Source] = open_source
    ) -> Source:
        receipt, key = receipts.get(name), self.keys[name]
        if receipt is None or receipt.key != key:
            raise CorruptionError(
                f"{self.objects.url}: expected {key} in the ledger's entry of unit {self.unit}, got {receipt}"
            )
        return opened(self.objects, receipt)

    def check(
        self, receipts: Mapping[str, ObjectReceipt], name: str, opened: Callable[..., Source] = open_source
    ) -> None:
        """Check every byte of one of the objects against its receipt; ``opened`` reads it. Raises CorruptionError."""
        source, receipt = self._source(receipts, name, opened), receipts[name]
        if self.record.layout == "arrow":
            self._arrow(source, receipt, set()).check_all()
            return
        is_words = name == self.hook
        geometry = layout.geometry(self.record, self.width) if is_words else layout.scale_geometry(self.record)
        ShardReader(source, geometry, self.num_rows, chunk_crcs=receipt.chunk_crc32c).check_all()
        got = crc32c_of_chunks(receipt.chunk_crc32c)
        if got != receipt.crc32c:
            raise CorruptionError(f"{source.key}: CRC-32C of its chunks: expected {receipt.crc32c}, got {got}")

    def encode(self, array: Words | StoredRows, each: MapBlocks = map) -> EncodedRows:
        """The objects of words [n, D], of float32 values [n, D] that a lossy store rounds, or of rows that were rounded
        before, as they are at an empty place. Computes only, and shares memory with ``array``. ``each`` maps over
        chunks."""
        rows = self._rounded(array)
        if self.record.layout == "arrow":
            file = self._encoded_arrow(rows)
            return EncodedRows(array, rows, {self.hook: file}, {self.hook: self._arrow_receipt(file)})
        geometry = layout.geometry(self.record, self.width)
        shards = {self.hook: self._encoded_shard(self.hook, rows.words, geometry, each)}
        if rows.scales is not None:
            name = layout.scales_name(self.hook)
            shards[name] = self._encoded_shard(name, rows.scales[:, None], layout.scale_geometry(self.record))
        data = {name: shard for name, (shard, _) in shards.items()}
        return EncodedRows(array, rows, data, {name: receipt for name, (_, receipt) in shards.items()})

    def create(self, ours: EncodedRows) -> tuple[dict[str, ObjectReceipt], StoredRows]:
        """Create the objects; receipts and rows of what is there then, which may be an earlier attempt's."""
        if self.record.layout == "arrow":
            theirs = self._create(self.keys[self.hook], ours.data[self.hook], self._decoded_arrow)
            if theirs is None:
                return dict(ours.receipts), ours.rows
            data, kept = theirs
            return {self.hook: self._arrow_receipt(data)}, kept
        if ours.rows.scales is not None:
            ours = self._with_scales_there(ours, ours.rows.scales)
        receipt, words = self._create_shard(self.hook, ours, ours.rows.words, layout.geometry(self.record, self.width))
        return {**ours.receipts, self.hook: receipt}, StoredRows(words, ours.rows.scales)

    def _with_scales_there(self, ours: EncodedRows, scales: Scales) -> EncodedRows:
        """Create the shard of scales; the rows as they are with the scales that are there then."""
        name = layout.scales_name(self.hook)
        receipt, column = self._create_shard(name, ours, scales[:, None], layout.scale_geometry(self.record))
        theirs = column[:, 0]
        self._require_same_finite(scales, theirs)
        if np.array_equal(theirs, scales, equal_nan=True):
            return replace(ours, rows=StoredRows(ours.rows.words, theirs), receipts={**ours.receipts, name: receipt})
        given, dtype = ours.given, self.record.dtype
        values = given.values(dtype) if isinstance(given, StoredRows) else given
        words = quantise(values, theirs, dtype)
        shard, of_words = self._encoded_shard(self.hook, words, layout.geometry(self.record, self.width))
        receipts = {self.hook: of_words, name: receipt}
        return EncodedRows(given, StoredRows(words, theirs), {**ours.data, self.hook: shard}, receipts)

    def _rounded(self, array: Words | StoredRows) -> StoredRows:
        if isinstance(array, StoredRows):
            return array
        if not self.record.lossy:
            return StoredRows(array, None)
        scales = row_scales(array, self.record.dtype)
        return StoredRows(quantise(array, scales, self.record.dtype), scales)

    def _require_same_finite(self, ours: Scales, theirs: Scales) -> None:
        """Attempts may differ in low bits; a row that is finite in one of them only has no scale that suits both."""
        differ = np.flatnonzero(np.isfinite(ours) != np.isfinite(theirs))
        if len(differ):
            key = self.keys[layout.scales_name(self.hook)]
            raise MismatchError(
                f"{self.objects.url}/{key}, left by an attempt that did not commit: row {differ[0]} of the unit: "
                f"expected the scale {ours[differ[0]]}, got {theirs[differ[0]]}. Sweep what no ledger names with "
                "`headworks store gc`, and run the job again"
            )

    def _encoded_shard(
        self, name: str, words: Words, geometry: Geometry, each: MapBlocks = map
    ) -> tuple[memoryview, ObjectReceipt]:
        data = encode_shard(words, geometry.chunk_rows, geometry.shard_rows, geometry.codec, each)
        return data, self._shard_receipt(name, data, geometry)

    def _shard_receipt(self, name: str, data: Data, geometry: Geometry) -> ObjectReceipt:
        crcs = stored_chunk_crcs(data, geometry, self.num_rows)
        return ObjectReceipt(
            key=self.keys[name], size_bytes=len(data), crc32c=crc32c_of_chunks(crcs), chunk_crc32c=crcs
        )

    def _create_shard(
        self, name: str, ours: EncodedRows, words: Words, geometry: Geometry
    ) -> tuple[ObjectReceipt, Words]:
        """Create one of the objects, of ``words``; receipt and words of what is there then."""

        def decode(data: bytes) -> Words:
            return ShardReader.over(data, geometry, self.num_rows, key=self.keys[name]).rows(0, self.num_rows)

        theirs = self._create(self.keys[name], ours.data[name], decode)
        if theirs is None:
            return ours.receipts[name], words
        data, kept = theirs
        return self._shard_receipt(name, data, geometry), kept

    def _create(self, key: str, ours: Data, decode: Callable[[bytes], Held]) -> tuple[bytes, Held] | None:
        """Create the object; None if it is ours then, else the bytes that stay there and what is in them."""
        if self.objects.create(key, ours):
            return None
        theirs = self.objects.read(key)
        if theirs == ours:
            return None
        try:
            kept = decode(theirs)
        except CorruptionError as exc:
            # No ledger names it and no reader can use it, so this one object may be replaced.
            _log.warning("store.leftover_replaced store=%s key=%s reason=%s", self.objects.url, key, exc)
            self.objects.write(key, ours)
            return None
        _log.warning("store.leftover_differs store=%s key=%s: the bytes that are there stay", self.objects.url, key)
        return theirs, kept

    @property
    def _arrow_geometry(self) -> ArrowGeometry:
        dtype = stored_dtype(self.record.dtype)
        return ArrowGeometry(self.record.chunk_rows, self.width, dtype, self.record.lossy)

    @property
    def _attributes(self) -> dict[str, str]:
        return layout.attributes(self.record, self.hook, self.pass_id)

    def _arrow(self, source: Source, receipt: ObjectReceipt, verified: set[int]) -> ArrowFile:
        located = Located(receipt.chunk_offsets, receipt.chunk_crc32c)
        return ArrowFile(source, self._arrow_geometry, self.num_rows, located, crc32c=receipt.crc32c, verified=verified)

    def _encoded_arrow(self, rows: StoredRows) -> bytearray:
        return encode_arrow(rows.words, rows.scales, self.record.chunk_rows, self._attributes)

    def _arrow_receipt(self, data: bytes | bytearray) -> ObjectReceipt:
        located = self._located(data)
        return ObjectReceipt(
            key=self.keys[self.hook],
            size_bytes=len(data),
            crc32c=crc32c_hex(data),
            chunk_crc32c=located.crcs,
            chunk_offsets=located.offsets,
        )

    def _located(self, data: bytes | bytearray) -> Located:
        return locate(data, self._arrow_geometry, self.num_rows, self._attributes, key=self.keys[self.hook])

    def _decoded_arrow(self, data: bytes) -> StoredRows:
        """Raises CorruptionError where the file is not sound by the checksums that it carries."""
        source = Source.over(data, self.keys[self.hook])
        file = ArrowFile(source, self._arrow_geometry, self.num_rows, self._located(data), crc32c=crc32c_hex(data))
        file.check(np.arange(len(file.offsets)))
        scales = file.scales.rows(0, self.num_rows)[:, 0] if file.scales else None
        return StoredRows(file.words.rows(0, self.num_rows), scales)
