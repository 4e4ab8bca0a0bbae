"""Token rows: what every row of a store or token table is, apart from its activations.

On disk they are Parquet, one file per unit or part. The bytes are a function of the rows and of the pyarrow version.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
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
_ENCODINGS = {
    "row": "DELTA_BINARY_PACKED",
    "token_id": "PLAIN",
    "document_id": "DELTA_BINARY_PACKED",
    "position": "DELTA_BINARY_PACKED",
    "held_out": "RLE",
}


@dataclass(frozen=True, eq=False)
class TokenRows:
    """T consecutive or chosen rows; five arrays of one length, converted to the types below if need be."""

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

    def __post_init__(self) -> None:
        for name, kind in _TYPES.items():
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=kind))
        shapes = {name: getattr(self, name).shape for name in _TYPES}
        if any(shape != (len(self.row),) for shape in shapes.values()):
            raise ValueError(f"the columns of token rows have one length and one axis; got {shapes}")

    def __len__(self) -> int:
        return len(self.row)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenRows):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in _TYPES)

    def __hash__(self) -> int:
        return hash((len(self), self.row.tobytes(), self.token_id.tobytes()))

    def slice(self, start: int, stop: int) -> Self:
        """Rows [start, stop) of these T, as views."""
        return type(self)(*(getattr(self, field.name)[start:stop] for field in fields(self)))

    @classmethod
    def empty(cls) -> Self:
        """No rows."""
        return cls(*(np.empty(0, dtype=kind) for kind in _TYPES.values()))

    @classmethod
    def concat(cls, parts: Iterable[TokenRows]) -> Self:
        """One after the other; no parts give no rows."""
        held: Sequence[TokenRows] = [*parts] or [cls.empty()]
        return cls(*(np.concatenate([getattr(part, name) for part in held]) for name in _TYPES))

    def to_parquet(self) -> bytes:
        """The same rows give the same bytes (with one version of pyarrow)."""
        table = pa.table({name: pa.array(getattr(self, name)) for name in _TYPES})
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            row_group_size=max(1, len(self)),
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            column_encoding=_ENCODINGS,
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
            table: Any = pq.read_table(pa.BufferReader(data), columns=list(_TYPES), use_threads=False)
        except (pa.ArrowException, OSError) as exc:
            raise CorruptionError(f"{where} is not readable Parquet: {exc}") from exc
        found = {name: str(table.schema.field(name).type) for name in table.column_names}
        if found != _TYPES:
            raise CorruptionError(f"{where} has the columns {found}, expected {_TYPES}")
        if any(table.column(name).null_count for name in _TYPES):
            raise CorruptionError(f"{where} has nulls, expected none")
        return cls(*(table.column(name).to_numpy() for name in _TYPES))
