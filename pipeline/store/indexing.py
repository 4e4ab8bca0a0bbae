"""``store[hook]``: the rows of one hook point under numpy's indexing. Nothing is read before an index asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.store.words import stored_dtype

if TYPE_CHECKING:
    from pipeline.store.reader import Store

Ints = npt.NDArray[np.int64]


class HookArray:
    """[rows, D] as float32 values, or by ``words`` as they are stored. Each index reads anew and gives a new array, but
    a slice of words within one chunk of a mapped file, which is a read-only view."""

    def __init__(self, store: Store, hook: str, *, as_words: bool = False) -> None:
        self._store = store
        self._hook = hook
        self._as_words = as_words

    @property
    def words(self) -> HookArray:
        """The same rows as stored words: bfloat16 as uint16; lossy dtypes without their scales."""
        return HookArray(self._store, self._hook, as_words=True)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self._store.hook_points[self._hook]

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what an index gives."""
        return stored_dtype(self._store.dtype) if self._as_words else np.dtype(np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows as an index would give them."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __len__(self) -> int:
        return self._store.num_rows

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        """Rows by an integer ([D]), a slice with any step, an array of integers or a mask of all rows; then, after a
        comma, channels by anything that numpy takes.

        Raises:
            IndexError: rows that do not exist, or no index at all. CorruptionError, IncompleteError: as ``read_rows``.
        """
        if isinstance(index, tuple):
            if len(index) != 2:
                raise IndexError(f"{self._hook} has two axes, rows and channels; got {len(index)} indices")
            rows, columns = self[index[0]], index[1]
            if _is_list(index[0]) and _is_list(columns):
                # Two lists pair up in numpy, and the rows are chosen already.
                return np.asarray(rows[np.arange(len(rows)), columns])
            return np.asarray(rows if columns is Ellipsis else rows[..., columns])
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._span(start, max(start, stop))
            return self._gather(np.arange(start, stop, step))
        wanted = np.asarray(index)
        if wanted.ndim == 0 and wanted.dtype.kind in "iu":
            row = int(_within(wanted.reshape(1), len(self), self._hook)[0])
            one: npt.NDArray[Any] = self._span(row, row + 1)[0]
            return one
        return self._gather(_rows_of(wanted, len(self), self._hook))

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """Row by row, read chunk by chunk."""
        size = self._store.record.chunk_rows
        for start in range(0, len(self), size):
            yield from self._span(start, min(start + size, len(self)))

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All rows in memory."""
        return np.asarray(self[:], dtype=dtype)

    def __repr__(self) -> str:
        rows, width = self.shape
        form = "words" if self._as_words else "values"
        return f"<{self._hook}: {rows:,} rows x {width:,}, {self._store.dtype}, read as {self.dtype} {form}>"

    def _span(self, start: int, stop: int) -> npt.NDArray[Any]:
        read = self._store.read_rows if self._as_words else self._store.read_values
        return read(self._hook, start, stop)

    def _gather(self, rows: Ints) -> npt.NDArray[Any]:
        return self._store.gather(self._hook, rows) if self._as_words else self._store.gather_values(self._hook, rows)


def _is_list(index: Any) -> bool:
    return not isinstance(index, slice) and index is not Ellipsis and np.ndim(index) > 0


def _rows_of(index: npt.NDArray[Any], num_rows: int, hook: str) -> Ints:
    """Row ids of an index array, from 0 on."""
    if index.dtype == np.bool_ and index.shape == (num_rows,):
        return np.flatnonzero(index)
    if index.ndim == 1 and (index.dtype.kind in "iu" or not index.size):
        return _within(index, num_rows, hook)
    raise IndexError(
        f"{hook}: expected an integer, a slice, a list of integers or a mask of {num_rows} booleans, "
        f"got {index.dtype} {list(index.shape)}"
    )


def _within(index: npt.NDArray[Any], num_rows: int, hook: str) -> Ints:
    """Negative indices count from the end."""
    rows = index.astype(np.int64)
    if rows.size and not (rows.min() >= -num_rows and rows.max() < num_rows):
        raise IndexError(f"{hook}: rows {rows.min()}..{rows.max()} are not within the {num_rows} rows of the store")
    return np.where(rows < 0, rows + num_rows, rows)
