"""Which rows are of one context: what the quality of a shuffle is measured by, and where a context begins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]


class ContextIndex:
    """The context of any row of a store whose contexts are whole: one bit a row, and 8 bytes a chunk."""

    def __init__(self, begins: Sequence[Bits], *, chunk_rows: int) -> None:
        """``begins``: for each chunk in order, which of its rows are the first of a context, as ``np.packbits`` gives
        it; the last may be short."""
        self._chunk_rows = chunk_rows
        self._bits = np.zeros((len(begins), -(-chunk_rows // 8)), dtype=np.uint8)
        for line, bits in zip(self._bits, begins, strict=True):
            line[: len(bits)] = bits
        self._before: Ints = np.concatenate([[0], np.cumsum(np.bitwise_count(self._bits).sum(axis=1), dtype=np.int64)])

    def of(self, rows: Ints) -> Ints:
        """The number of each row's context, counted through the store."""
        chunks, places = np.unique(rows // self._chunk_rows, return_inverse=True)
        within = np.unpackbits(self._bits[chunks], axis=1, count=self._chunk_rows).cumsum(axis=1, dtype=np.int64)
        return np.asarray(self._before[chunks][places] + within[places, rows % self._chunk_rows] - 1)

    @property
    def num_contexts(self) -> int:
        """Contexts of the store."""
        return int(self._before[-1])

    def first_row(self, context: int) -> int:
        """The row that a context begins with."""
        chunk = int(np.searchsorted(self._before, context, side="right")) - 1
        begins = np.flatnonzero(np.unpackbits(self._bits[chunk], count=self._chunk_rows))
        return chunk * self._chunk_rows + int(begins[context - self._before[chunk]])


class ContextPairs:
    """Counts pairs of rows of one context over a stream in which contexts are whole."""

    def __init__(self) -> None:
        self._rows = 0
        self._pairs = 0
        self._open_id = -1
        self._open_count = 0

    def add(self, contexts: Ints) -> None:
        """``contexts``: an id for each further row, ascending; a context may go on from the last call."""
        if not len(contexts):
            return
        ids, counts = np.unique(contexts, return_counts=True)
        if ids[0] == self._open_id:
            counts[0] += self._open_count
        else:
            self._pairs += _pairs(self._open_count)
        self._pairs += int((counts[:-1] * (counts[:-1] - 1)).sum()) // 2
        self._open_id, self._open_count = int(ids[-1]), int(counts[-1])
        self._rows += len(contexts)

    def rate(self) -> float:
        """Pairs of one context over all pairs."""
        return (self._pairs + _pairs(self._open_count)) / max(_pairs(self._rows), 1)


class ScatteredContextPairs:
    """The same of a stream in any order, that of a shuffled store. Memory: some 32 bytes for each context."""

    def __init__(self) -> None:
        self._rows = 0
        self._ids: Ints = np.empty(0, dtype=np.int64)
        self._counts: Ints = np.empty(0, dtype=np.int64)
        self._waiting: list[Ints] = []
        self._num_waiting = 0

    def add(self, contexts: Ints) -> None:
        """``contexts``: an id for each further row."""
        self._waiting.append(contexts)
        self._num_waiting += len(contexts)
        self._rows += len(contexts)
        # Merging costs as much as there is to merge with, so it waits until it is worth it.
        if self._num_waiting > max(len(self._ids), 2**20):
            self._merge()

    def rate(self) -> float:
        """Pairs of one context over all pairs."""
        self._merge()
        return int((self._counts * (self._counts - 1)).sum()) / 2 / max(_pairs(self._rows), 1)

    def _merge(self) -> None:
        ids, counts = np.unique(np.concatenate([np.empty(0, np.int64), *self._waiting]), return_counts=True)
        both, places = np.unique(np.concatenate([self._ids, ids]), return_inverse=True)
        total = np.zeros(len(both), dtype=np.int64)
        np.add.at(total, places, np.concatenate([self._counts, counts]))
        self._ids, self._counts = both, total
        self._waiting, self._num_waiting = [], 0


def _pairs(count: int) -> int:
    """Unordered pairs among ``count`` things."""
    return count * (count - 1) // 2
