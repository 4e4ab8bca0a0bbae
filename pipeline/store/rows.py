"""Token rows: what every row of a store or token table is, apart from its activations.

On disk they are Parquet, one file per unit or part. The bytes are a function of the rows and of the pyarrow version.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import CorruptionError

_TYPES: dict[str, str] = {
    "row": "int64",
    "token_id": "int32",
    "document_id": "int64",
    "position": "int32",
    "held_out": "bool",
}
_SOURCE_ROW = "source_row"
_ENCODINGS = {
    "row": "DELTA_BINARY_PACKED",
    "token_id": "PLAIN",
    "document_id": "DELTA_BINARY_PACKED",
    "position": "DELTA_BINARY_PACKED",
    "held_out": "RLE",
    _SOURCE_ROW: "PLAIN",  # in no order, so deltas would only be larger
}


@dataclass(frozen=True, eq=False)
class TokenRows:
    """T consecutive or chosen rows; arrays of one length, converted to the types below if need be."""

    row: npt.NDArray[np.int64]
    """[T] global row index."""
    token_id: npt.NDArray[np.int32]
    """[T]."""
    document_id: npt.NDArray[np.int64]
    """[T] global document index; special tokens belong to the document that they precede."""
    position: npt.NDArray[np.int32]
    """[T] index in the row's context; 0 begins a context."""
    held_out: npt.NDArray[np.bool_]
    """[T] true where the document is kept from training."""
    source_row: npt.NDArray[np.int64] | None = None
    """[T] row of the token table, where it is not ``row``: in a shuffled store, and in an export of some rows. None
    where rows are in the table's order."""

    def __post_init__(self) -> None:
        for name, kind in self._columns.items():
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=kind))
        shapes = {name: getattr(self, name).shape for name in self._columns}
        if any(shape != (len(self.row),) for shape in shapes.values()):
            raise ValueError(f"the columns of token rows have one length and one axis; got {shapes}")

    def __len__(self) -> int:
        return len(self.row)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenRows):
            return NotImplemented
        if self._columns != other._columns:
            return False
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in self._columns)

    def __hash__(self) -> int:
        return hash((len(self), self.row.tobytes(), self.token_id.tobytes()))

    @property
    def _columns(self) -> dict[str, str]:
        return _TYPES if self.source_row is None else {**_TYPES, _SOURCE_ROW: "int64"}

    @property
    def context(self) -> npt.NDArray[np.int64]:
        """[T] what tells contexts apart: the row at which the context of each row began, before any shuffle."""
        rows = self.row if self.source_row is None else self.source_row
        return np.asarray(rows - self.position)

    def slice(self, start: int, stop: int) -> Self:
        """Rows [start, stop) of these T, as views."""
        return type(self)(*(getattr(self, name)[start:stop] for name in self._columns))

    def take(self, places: npt.NDArray[np.int64]) -> Self:
        """The rows at ``places`` among these T, copied."""
        return type(self)(*(getattr(self, name)[places] for name in self._columns))

    @classmethod
    def empty(cls) -> Self:
        """No rows."""
        return cls(*(np.empty(0, dtype=kind) for kind in _TYPES.values()))

    @classmethod
    def concat(cls, parts: Iterable[TokenRows]) -> Self:
        """One after the other; no parts give no rows."""
        held: Sequence[TokenRows] = [*parts] or [cls.empty()]
        return cls(*(np.concatenate([getattr(part, name) for part in held]) for name in held[0]._columns))

    def to_parquet(self) -> bytes:
        """The same rows give the same bytes (with one version of pyarrow)."""
        table = pa.table({name: pa.array(getattr(self, name)) for name in self._columns})
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            row_group_size=max(1, len(self)),
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            column_encoding={name: _ENCODINGS[name] for name in self._columns},
            store_schema=False,
        )
        return bytes(sink.getvalue())

    @classmethod
    def from_parquet(cls, data: bytes | bytearray | memoryview, *, where: str = "token rows") -> Self:
        """Read what ``to_parquet`` wrote; further columns are ignored.

        Raises:
            CorruptionError: not Parquet, a column is missing, of another type or has nulls; names ``where``.
        """
        try:
            # One thread: a pool per reader costs more than it saves on files of this size.
            file: Any = pq.ParquetFile(pa.BufferReader(data))
            named = [name for name in (*_TYPES, _SOURCE_ROW) if name in file.schema_arrow.names]
            table: Any = file.read(columns=named, use_threads=False)
        except (pa.ArrowException, OSError) as exc:
            raise CorruptionError(f"{where} is not readable Parquet: {exc}") from exc
        found = {name: str(table.schema.field(name).type) for name in table.column_names}
        wanted = {**_TYPES, _SOURCE_ROW: "int64"} if _SOURCE_ROW in found else _TYPES
        if found != wanted:
            raise CorruptionError(f"{where} has the columns {found}, expected {wanted}")
        if any(table.column(name).null_count for name in wanted):
            raise CorruptionError(f"{where} has nulls, expected none")
        return cls(*(table.column(name).to_numpy() for name in wanted))
