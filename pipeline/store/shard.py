"""One shard: the bytes of one Zarr v3 ``sharding_indexed`` chunk, written whole and read by chunk.

    chunk 0 | chunk 1 | ... | chunk m-1 | index

A chunk is ``chunk_rows`` rows of little-endian words (the last one filled up with zeros), compressed if the codec says
so, and followed by the CRC-32C of what precedes it (4 bytes). Chunks lie in order and without gaps; chunks wholly
behind the last row are absent. The index has (offset, length) as uint64 for each of the ``shard_rows / chunk_rows``
places, 2**64 - 1 twice where a chunk is absent, then its own CRC-32C.
Source: Zarr v3 core, sharding_indexed codec 1.0, https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs import blosc  # type: ignore[import-untyped]

from pipeline.store import bf16_codec, sparse_codec
from pipeline.store.checksums import Buffer, crc32c
from pipeline.store.chunks import gather_rows, read_rows
from pipeline.store.parallel import MapBlocks
from pipeline.store.sources import Bytes, Source
from pipeline.store.words import Words
from schemas.errors import CorruptionError
from schemas.fields import Codec

_CRC = 4
_ABSENT = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Geometry:
    """What a shard's bytes mean: T rows of D words in chunks."""

    chunk_rows: int
    shard_rows: int
    width: int
    """D."""
    dtype: np.dtype[Any]
    codec: Codec

    @property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Of one decoded chunk."""
        return self.chunk_rows * self.row_bytes

    @property
    def places(self) -> int:
        """Chunks that a full shard has."""
        return self.shard_rows // self.chunk_rows

    @property
    def index_bytes(self) -> int:
        return 16 * self.places + _CRC

    def chunks_of(self, num_rows: int) -> int:
        """Chunks that hold the first ``num_rows`` rows."""
        return -(-num_rows // self.chunk_rows)


def encode_shard(words: Words, chunk_rows: int, shard_rows: int, codec: Codec, each: MapBlocks = map) -> memoryview:
    """Words [n, D] with 0 < n <= shard_rows -> the bytes of the whole object. Equal words give equal bytes.

    ``each`` maps over chunks, which threads may share.
    """
    num_rows, width = words.shape
    if not 0 < num_rows <= shard_rows or shard_rows % chunk_rows:
        raise ValueError(f"{num_rows} rows do not fit a shard of {shard_rows} rows in chunks of {chunk_rows}")
    geometry = Geometry(chunk_rows, shard_rows, width, words.dtype.newbyteorder("<"), codec)
    source = np.ascontiguousarray(words, dtype=geometry.dtype)
    index = np.full((geometry.places, 2), _ABSENT, dtype="<u8")
    blocks = [source[start : start + chunk_rows] for start in range(0, num_rows, chunk_rows)]
    chunks = list(each(partial(_stored_chunk, geometry=geometry), blocks))
    # One array of the final size: numpy asks for huge pages, where a buffer that grows spends its time on page faults.
    out = np.empty(sum(len(chunk) + _CRC for chunk in chunks) + geometry.index_bytes, dtype=np.uint8)
    end = 0
    for place, chunk in enumerate(chunks):
        index[place] = (end, len(chunk) + _CRC)
        end = _append(out, end, chunk)
    _append(out, end, index.reshape(-1).view(np.uint8))
    return out.data


def _append(out: Bytes, start: int, data: Bytes) -> int:
    """``data`` and its checksum at ``start``; where they end."""
    end = start + len(data)
    out[start:end] = data
    out[end : end + _CRC] = np.frombuffer(crc32c(data).to_bytes(_CRC, "little"), dtype=np.uint8)
    return end + _CRC


def _stored_chunk(rows: Words, geometry: Geometry) -> Bytes:
    """Filled up with zero rows; ``zstd``: Blosc's byte shuffle, zstd level 1; others: by the module of their name."""
    if len(rows) < geometry.chunk_rows:
        rows = np.concatenate([rows, np.zeros((geometry.chunk_rows - len(rows), geometry.width), dtype=rows.dtype)])
    flat = rows.reshape(-1)
    if geometry.codec == "none":
        return flat.view(np.uint8)
    if geometry.codec == "bf16":
        return bf16_codec.encode(rows)
    if geometry.codec == "sparse":
        return sparse_codec.encode(rows)
    # Blosc's threads append blocks in the order in which they finish: with one thread equal words give equal bytes.
    blosc.use_threads = False
    packed = blosc.compress(flat, b"zstd", 1, blosc.SHUFFLE, 0, geometry.dtype.itemsize)
    return np.frombuffer(packed, dtype=np.uint8)


class ShardReader:
    """Rows of one shard.

    ``chunk_crcs`` are the checksums that the ledger has for its chunks: every chunk is checked on first touch, against
    its own checksum and the ledger's. ``verified`` is the caller's set of chunks that have passed and need no further
    check.

    Every method raises CorruptionError, naming the object, where the bytes are not what was committed.
    """

    def __init__(
        self,
        source: Source,
        geometry: Geometry,
        num_rows: int,
        *,
        chunk_crcs: list[str] | None = None,
        verified: set[int] | None = None,
    ) -> None:
        self._source = source
        self.geometry = geometry
        self.num_rows = num_rows
        self.chunk_rows = geometry.chunk_rows
        self.width = geometry.width
        self.dtype = geometry.dtype
        self.key = source.key
        self._chunk_crcs = chunk_crcs
        self._verified = set() if verified is None else verified

    @classmethod
    def over(cls, data: Buffer, geometry: Geometry, num_rows: int, *, key: str = "shard") -> ShardReader:
        """A reader of a whole shard in memory, which must stay unchanged."""
        return cls(Source.over(data, key), geometry, num_rows)

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """[m + 1]: chunk c is bytes [ends[c], ends[c + 1]) of the object."""
        geometry, wanted = self.geometry, self.geometry.chunks_of(self.num_rows)
        size_bytes = self._source.size_bytes
        footer = self._source.read_exactly(size_bytes - geometry.index_bytes, size_bytes, "index")
        self._compare("checksum of the index", crc32c(footer[:-_CRC]), _stored_crc(footer))
        index = footer[:-_CRC].view("<u8").reshape(geometry.places, 2)
        if (index[wanted:] != _ABSENT).any() or (index[:wanted] == _ABSENT).any():
            present = int((index[:, 0] != _ABSENT).sum())
            raise CorruptionError(f"{self.key}: expected the first {wanted} chunks in its index, got {present} chunks")
        ends = np.concatenate([[0], np.cumsum(index[:wanted, 1].astype(np.int64))])
        if (index[:wanted, 0] != ends[:-1].astype(np.uint64)).any():
            raise CorruptionError(f"{self.key}: expected chunks in order without gaps, got the index {index.tolist()}")
        self._compare("bytes of all chunks", size_bytes - geometry.index_bytes, int(ends[-1]))
        if geometry.codec == "none" and (index[:wanted, 1] != geometry.chunk_bytes + _CRC).any():
            raise CorruptionError(f"{self.key}: expected chunks of {geometry.chunk_bytes + _CRC} bytes, got others")
        return ends

    def rows(self, start: int, stop: int) -> Words:
        """Words [stop - start, D]: a view of the source where the codec is none and one chunk has them all."""
        return read_rows(self, start, stop)

    def gather(self, rows: npt.NDArray[np.int64], out: Words, places: npt.NDArray[np.int64]) -> None:
        """``out[places] = rows`` of this shard, in any order; each chunk is read once."""
        if not self.is_mapped:
            _ = self.ends  # one request, before several threads want it
        gather_rows(self, rows, out, places)

    @property
    def is_mapped(self) -> bool:
        """The shard is memory."""
        return self._source.whole is not None

    def chunks(self, first: int, stop: int) -> list[Words]:
        """Chunks [first, stop) as words [chunk_rows, D] each, by one read; the last may end in padding."""
        ends = self.ends
        stored = self._source.read_exactly(int(ends[first]), int(ends[stop]), f"chunks {first} to {stop - 1}")
        base = int(ends[first])
        return [self._decoded(c, stored[int(ends[c]) - base : int(ends[c + 1]) - base]) for c in range(first, stop)]

    def check_all(self) -> None:
        """Check the index and every chunk, read one by one. Raises CorruptionError for the first that differs."""
        self.check(np.arange(len(self.ends) - 1))

    def table(self) -> Words | None:
        """[m, chunk_rows, D] over all chunks in place, if they are not compressed; a checksum lies between them."""
        geometry = self.geometry
        if geometry.codec != "none" or self._source.whole is None:
            return None
        strides = (geometry.chunk_bytes + _CRC, geometry.row_bytes, geometry.dtype.itemsize)
        shape = (len(self.ends) - 1, geometry.chunk_rows, geometry.width)
        return np.ndarray(shape, dtype=geometry.dtype, buffer=self._source.whole.data, strides=strides)

    def check(self, chunks: npt.NDArray[np.int64]) -> None:
        """Check those of the chunks that no one has checked yet."""
        for chunk in chunks.tolist():
            if chunk not in self._verified:
                self.chunks(chunk, chunk + 1)

    def _decoded(self, chunk: int, stored: Bytes) -> Words:
        if chunk not in self._verified:
            self._check_chunk(chunk, stored)
            self._verified.add(chunk)
        geometry = self.geometry
        payload = stored[:-_CRC]
        if geometry.codec in ("bf16", "sparse"):
            try:
                if geometry.codec == "bf16":
                    return bf16_codec.decode(payload, geometry.chunk_rows, geometry.width)
                return sparse_codec.decode(payload, geometry.chunk_rows, geometry.width, geometry.dtype)
            except CorruptionError as exc:
                raise CorruptionError(f"{self.key}: chunk {chunk} does not decode: {exc}") from exc
        if geometry.codec == "zstd":
            try:
                payload = np.frombuffer(blosc.decompress(payload), dtype=np.uint8)
            except RuntimeError as exc:
                raise CorruptionError(f"{self.key}: chunk {chunk} does not decompress: {exc}") from exc
        self._compare(f"bytes of chunk {chunk}", geometry.chunk_bytes, len(payload))
        return payload.view(geometry.dtype).reshape(geometry.chunk_rows, geometry.width)

    def _check_chunk(self, chunk: int, stored: Bytes) -> None:
        got = crc32c(stored[:-_CRC])
        self._compare(f"CRC-32C of chunk {chunk}", f"{_stored_crc(stored):08x}", f"{got:08x}")
        if self._chunk_crcs:
            self._compare(f"CRC-32C of chunk {chunk} in the ledger", self._chunk_crcs[chunk], f"{got:08x}")

    def _compare(self, what: str, expected: object, got: object) -> None:
        if expected != got:
            raise CorruptionError(f"{self.key}: {what}: expected {expected}, got {got}")


def _stored_crc(data: Bytes) -> int:
    return int.from_bytes(data[-_CRC:].tobytes(), "little")


def stored_chunk_crcs(shard: Buffer, geometry: Geometry, num_rows: int) -> list[str]:
    """The checksums that a whole, trusted shard carries after its chunks, for its receipt."""
    whole = np.frombuffer(shard, dtype=np.uint8)
    ends = ShardReader.over(whole, geometry, num_rows).ends
    return [f"{_stored_crc(whole[: int(end)]):08x}" for end in ends[1:]]
