"""One Arrow IPC file: the rows of one hook point in one unit, written whole and read by chunk.

A chunk is one record batch of ``chunk_rows`` rows, the last one shorter. Column ``activations`` is a fixed-shape
tensor [D] of words; a lossy store has a second column ``scale``, float32. Nothing is compressed and nothing is null, so
the body of a batch is

    words [rows, D] | zeros up to a multiple of 8 bytes | scales [rows] | zeros up to a multiple of 8 bytes

Each batch carries the CRC-32C of its body as custom metadata ``crc32c``. Where the bodies begin is in the ledger too:
readers of this package go by that and never look at Arrow's own metadata, which pyarrow and other readers need.
Source: https://arrow.apache.org/docs/format/Columnar.html, "IPC File Format" and "Fixed shape tensor".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.store.checksums import Buffer, crc32c_hex, crc32c_of_pieces
from pipeline.store.chunks import gather_rows, read_rows
from pipeline.store.rounding import Scales
from pipeline.store.sources import Bytes, Source
from pipeline.store.words import Words
from schemas.errors import CorruptionError

_SCALE = np.dtype("<f4")


@dataclass(frozen=True)
class ArrowGeometry:
    """What a file's bytes mean: T rows of D words in chunks."""

    chunk_rows: int
    width: int
    """D."""
    dtype: np.dtype[Any]
    is_scaled: bool
    """There is a scale for each row."""

    def chunk_of_rows(self, chunk: int, num_rows: int) -> int:
        """Rows of a chunk of a file with ``num_rows`` rows."""
        return min(self.chunk_rows, num_rows - chunk * self.chunk_rows)

    def scales_at(self, rows: int) -> int:
        """Where the scales begin in the body of a chunk of ``rows`` rows."""
        return _padded(rows * self.width * self.dtype.itemsize)

    def body_bytes(self, rows: int) -> int:
        return self.scales_at(rows) + (_padded(rows * _SCALE.itemsize) if self.is_scaled else 0)

    def num_chunks(self, num_rows: int) -> int:
        return -(-num_rows // self.chunk_rows)


def encode_arrow(words: Words, scales: Scales | None, chunk_rows: int, attributes: Mapping[str, str]) -> bytearray:
    """Words [n, D] with n > 0 and, of a lossy store, scales [n] -> the whole object. Equal rows and one version of
    pyarrow give equal bytes. ``attributes`` go to the schema's metadata, ``logical_dtype`` to the column's too."""
    source = np.ascontiguousarray(words)
    schema = _schema(ArrowGeometry(chunk_rows, words.shape[1], words.dtype, scales is not None), attributes)
    parts = [slice(start, start + chunk_rows) for start in range(0, len(source), chunk_rows)]
    batches = [_batch(source[part], None if scales is None else scales[part], schema) for part in parts]
    # Written twice, the first time only to learn the size: a sink that grows would copy everything more than once.
    measured = pa.MockOutputStream()
    _write(measured, schema, batches)
    out = bytearray(measured.size())
    _write(pa.FixedSizeBufferWriter(pa.py_buffer(out)), schema, batches)
    return out


def _write(sink: pa.NativeFile, schema: pa.Schema, batches: Sequence[tuple[pa.RecordBatch, str]]) -> None:
    with sink, pa.ipc.new_file(sink, schema) as writer:
        for batch, checksum in batches:
            writer.write_batch(batch, custom_metadata={"crc32c": checksum})


def _schema(geometry: ArrowGeometry, attributes: Mapping[str, str]) -> pa.Schema:
    tensor = pa.fixed_shape_tensor(pa.from_numpy_dtype(geometry.dtype), [geometry.width])
    logical = {"logical_dtype": attributes["logical_dtype"]}
    fields = [pa.field("activations", tensor, nullable=False, metadata=logical)]
    if geometry.is_scaled:
        fields.append(pa.field("scale", pa.float32(), nullable=False))
    return pa.schema(fields, metadata=dict(attributes))


def _batch(words: Words, scales: Scales | None, schema: pa.Schema) -> tuple[pa.RecordBatch, str]:
    """The rows as a record batch, sharing memory, and the CRC-32C of the body that Arrow will write for them."""
    tensor = schema.field("activations").type
    flat = pa.Array.from_buffers(tensor.value_type, words.size, [None, pa.py_buffer(words)])
    storage = pa.FixedSizeListArray.from_arrays(flat, type=tensor.storage_type)
    columns = [pa.ExtensionArray.from_storage(tensor, storage), *([] if scales is None else [pa.array(scales)])]
    pieces: list[Buffer] = []
    for array in (words, scales):
        if array is not None:
            pieces += [array.reshape(-1), bytes(-array.nbytes % 8)]
    return pa.record_batch(columns, schema=schema), crc32c_of_pieces(pieces)


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // 8) * 8


@dataclass(frozen=True)
class Located:
    """Where the chunks of a file are, as its own metadata has it."""

    offsets: list[int]
    crcs: list[str]


def locate(
    data: bytes | bytearray, geometry: ArrowGeometry, num_rows: int, attributes: Mapping[str, str], *, key: str
) -> Located:
    """Read the metadata of a whole file and require that it is what ``encode_arrow`` writes; bodies are not read.

    Raises:
        CorruptionError: it is another file, or none.
    """
    buffer = pa.py_buffer(data)
    expected = _schema(geometry, attributes)
    located = Located([], [])
    try:
        reader = pa.ipc.open_file(buffer)
        if not reader.schema.equals(expected, check_metadata=True):
            raise CorruptionError(f"{key}: expected the Arrow schema {expected}, got {reader.schema}")
        if reader.num_record_batches != geometry.num_chunks(num_rows):
            raise CorruptionError(
                f"{key}: expected {geometry.num_chunks(num_rows)} record batches, got {reader.num_record_batches}"
            )
        for chunk in range(reader.num_record_batches):
            batch, named = reader.get_batch_with_custom_metadata(chunk)
            columns = [batch.column(0).storage.values, *batch.columns[1:]]
            offsets = [column.buffers()[1].address - buffer.address for column in columns]
            rows = geometry.chunk_of_rows(chunk, num_rows)
            wanted = [offsets[0] + (geometry.scales_at(rows) if place else 0) for place in range(len(columns))]
            ends = offsets[0] + geometry.body_bytes(rows)
            if (batch.num_rows, offsets) != (rows, wanted) or ends > len(data):
                raise CorruptionError(f"{key}: expected {rows} rows at {wanted}, got {batch.num_rows} at {offsets}")
            located.offsets.append(offsets[0])
            located.crcs.append(((named or {}).get("crc32c") or b"").decode(errors="replace"))
    except (pa.ArrowException, OSError, IndexError) as exc:
        raise CorruptionError(f"{key} is not a readable Arrow file: {exc}") from exc
    return located


class ArrowFile:
    """The chunks of one file, found by the ledger's offsets and checked against its checksums on first touch.

    ``verified`` is the caller's set of chunks that have passed and need no further check; ``crc32c`` is the ledger's
    checksum of the whole file.
    """

    def __init__(
        self,
        source: Source,
        geometry: ArrowGeometry,
        num_rows: int,
        located: Located,
        *,
        crc32c: str,
        verified: set[int] | None = None,
    ) -> None:
        chunks = geometry.num_chunks(num_rows)
        if (len(located.offsets), len(located.crcs)) != (chunks, chunks):
            raise CorruptionError(f"{source.key}: expected {chunks} chunks in its receipt, got {len(located.offsets)}")
        self.source = source
        self.geometry = geometry
        self.num_rows = num_rows
        self.offsets = located.offsets
        self._crcs = located.crcs
        self._crc32c = crc32c
        self._verified = set() if verified is None else verified

    @property
    def words(self) -> ArrowColumn:
        """The words of the rows, [T, D]."""
        return ArrowColumn(self, is_scale=False)

    @property
    def scales(self) -> ArrowColumn | None:
        """The scales of the rows as [T, 1], of a lossy store."""
        return ArrowColumn(self, is_scale=True) if self.geometry.is_scaled else None

    def rows_of(self, chunk: int) -> int:
        return self.geometry.chunk_of_rows(chunk, self.num_rows)

    def bodies(self, first: int, stop: int) -> list[Bytes]:
        """The bodies of chunks [first, stop), checked, by one read: what lies between them is little."""
        ends = [self.offsets[c] + self.geometry.body_bytes(self.rows_of(c)) for c in range(first, stop)]
        base = self.offsets[first]
        data = self.source.read_exactly(base, ends[-1], f"chunks {first} to {stop - 1}")
        bodies = [data[self.offsets[c] - base : end - base] for c, end in zip(range(first, stop), ends, strict=True)]
        for chunk, body in zip(range(first, stop), bodies, strict=True):
            if chunk not in self._verified:
                self._check_body(chunk, body)
                self._verified.add(chunk)
        return bodies

    def part(self, chunk: int, start: int, stop: int) -> Bytes:
        """Bytes [start, stop) of a chunk's body; a body that nobody has checked yet is read whole."""
        if chunk not in self._verified:
            return self.bodies(chunk, chunk + 1)[0][start:stop]
        offset = self.offsets[chunk]
        return self.source.read_exactly(offset + start, offset + stop, f"chunk {chunk}")

    def _check_body(self, chunk: int, body: Bytes) -> None:
        got = crc32c_hex(body)
        if got != self._crcs[chunk]:
            raise CorruptionError(
                f"{self.source.key}: CRC-32C of chunk {chunk} in the ledger: expected {self._crcs[chunk]}, got {got}"
            )

    def check(self, chunks: npt.NDArray[np.int64]) -> None:
        """Check those of the chunks that no one has checked yet."""
        for chunk in chunks.tolist():
            if chunk not in self._verified:
                self.bodies(chunk, chunk + 1)

    def check_all(self) -> None:
        """Check every chunk and then every byte of the file, Arrow's own metadata included."""
        self._verified.clear()
        self.check(np.arange(len(self.offsets)))
        got = self.source.crc32c()
        if got != self._crc32c:
            raise CorruptionError(
                f"{self.source.key}: CRC-32C of the file: expected {self._crc32c}, got {got}; its rows are sound, what "
                "other Arrow readers need to find them is not"
            )


class ArrowColumn:
    """One column of a file, as rows."""

    def __init__(self, file: ArrowFile, *, is_scale: bool) -> None:
        self._file = file
        self._is_scale = is_scale
        self.key = file.source.key
        self.num_rows = file.num_rows
        self.chunk_rows = file.geometry.chunk_rows
        self.width = 1 if is_scale else file.geometry.width
        self.dtype = _SCALE if is_scale else file.geometry.dtype

    def rows(self, start: int, stop: int) -> Words:
        """Words [stop - start, D]: a view of the file where it is mapped and one chunk has them all."""
        return read_rows(self, start, stop)

    def gather(self, rows: npt.NDArray[np.int64], out: Words, places: npt.NDArray[np.int64]) -> None:
        """``out[places] = rows`` of this file, in any order; each chunk is read once."""
        gather_rows(self, rows, out, places)

    @property
    def is_mapped(self) -> bool:
        """The file is memory."""
        return self._file.source.whole is not None

    def check_all(self) -> None:
        """Check every byte of the file, not only of this column."""
        self._file.check_all()

    def check(self, chunks: npt.NDArray[np.int64]) -> None:
        """Check those of the chunks that no one has checked yet."""
        self._file.check(chunks)

    def chunks(self, first: int, stop: int) -> list[Words]:
        """Chunks [first, stop), the last one as short as the unit leaves it."""
        rows = [self._file.rows_of(chunk) for chunk in range(first, stop)]
        spans = [(self._begin(n), self._begin(n) + n * self.width * self.dtype.itemsize) for n in rows]
        if self._is_scale:
            # A few bytes of each chunk, whose words have been read and checked as a rule.
            parts = [self._file.part(chunk, *span) for chunk, span in zip(range(first, stop), spans, strict=True)]
        else:
            bodies = self._file.bodies(first, stop)
            parts = [body[begin:end] for body, (begin, end) in zip(bodies, spans, strict=True)]
        return [part.view(self.dtype).reshape(n, self.width) for part, n in zip(parts, rows, strict=True)]

    def table(self) -> Words | None:
        """[m, chunk_rows, D] over the full chunks in place, if the file is mapped and they lie evenly, as they do."""
        file, whole = self._file, self._file.source.whole
        full = self.num_rows // self.chunk_rows
        steps = {b - a for a, b in zip(file.offsets[:full], file.offsets[1:full], strict=False)}
        if whole is None or not full or len(steps) > 1:
            return None
        row_bytes = self.width * self.dtype.itemsize
        strides = (steps.pop() if steps else 0, row_bytes, self.dtype.itemsize)
        start = file.offsets[0] + self._begin(self.chunk_rows)
        shape = (full, self.chunk_rows, self.width)
        return np.ndarray(shape, dtype=self.dtype, buffer=whole.data, offset=start, strides=strides)

    def _begin(self, rows: int) -> int:
        return self._file.geometry.scales_at(rows) if self._is_scale else 0
