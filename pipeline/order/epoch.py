"""The sequence of rows of one epoch, a pure function of an ``OrderKey``, the epoch and the eligible rows.

1. Chunks that hold an eligible row are put in a keyed order, or left in the store's where the order is sequential.
2. That order is cut into windows of nearly equal length, at most ``window_chunks`` chunks each.
3. The eligible rows of a window are permuted uniformly.

The windows one after the other are the epoch: every eligible row once. A global batch is a slice of this sequence;
ranks and batch size decide who reads what, never the sequence. A rank owns, in every window, the chunks whose place
modulo the number of ranks is its own, so no two ranks read one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.order.arranging import Slots, arrange
from pipeline.order.eligible import EligibleRows
from pipeline.order.keys import OrderKey
from pipeline.order.permutation import KeyedPermutation

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Some chunks and the order of their rows."""

    chunks: Ints
    """Chunk indices by place, [W]."""
    rows: Ints
    """Row ids in training order, [n]."""
    places: Ints
    """For each row the place of its chunk in ``chunks``, [n]."""
    slots: Slots
    """For each row of each chunk its place in ``rows``, [W, chunk_rows]; -1: not eligible."""
    start: int
    """Position in the epoch of the first row."""

    @property
    def stop(self) -> int:
        """Position in the epoch behind the last row."""
        return self.start + len(self.rows)


class EpochOrder:
    """One epoch: ``batch(b)`` for b in 0..num_batches-1 is a partition of the eligible rows."""

    def __init__(self, eligible: EligibleRows, key: OrderKey, epoch: int, *, batch_rows: int) -> None:
        self._eligible = eligible
        self._key = key
        self.epoch = epoch
        self.batch_rows = batch_rows
        filled = np.flatnonzero(eligible.counts)
        self.num_windows = -(-len(filled) // key.order.window_chunks)
        if len(filled) and not key.is_sequential(epoch):
            shuffle = KeyedPermutation(len(filled), key.derive("chunks", epoch=epoch))
            filled = filled[shuffle.apply(np.arange(len(filled)))]
        self._chunks: Ints = filled
        # Equal windows: a short last one would mix its rows worse than the others do.
        self._cuts = np.arange(self.num_windows + 1) * len(filled) // max(self.num_windows, 1)
        ends = np.concatenate([[0], np.cumsum(eligible.counts[filled])])
        self._starts: Ints = ends[self._cuts]

    @property
    def num_rows(self) -> int:
        """Rows of the epoch."""
        return self._eligible.num_rows

    @property
    def num_batches(self) -> int:
        """Global batches of the epoch; the last may be short."""
        return -(-self.num_rows // self.batch_rows)

    def span(self, batch: int) -> tuple[int, int]:
        """``(start, stop)`` positions in the epoch of a global batch.

        Raises:
            IndexError: the epoch has no such batch.
        """
        if not 0 <= batch < self.num_batches:
            raise IndexError(f"batch {batch} of an epoch of {self.num_batches} batches of {self.batch_rows} rows")
        return batch * self.batch_rows, min((batch + 1) * self.batch_rows, self.num_rows)

    def window_at(self, position: int) -> int:
        """Index of the window that holds a position of the epoch."""
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def window(self, index: int) -> Window:
        """The window's rows, in order.

        The rows are sorted by a random word each, not by ``Generator.permutation``: numpy keeps the words of a bit
        generator fixed for ever, but not what its generators make of them (NEP 19), and a run must go on in the
        same order after an upgrade.
        """
        chunks = self._chunks[self._cuts[index] : self._cuts[index + 1]]
        bits = np.random.Philox(key=self._key.derive("rows", epoch=self.epoch, window=index))
        start, stop = self._starts[index : index + 2].tolist()
        shuffle = _stable_order(bits.random_raw(stop - start))
        return Window(chunks, *arrange(self._eligible.marks_of(chunks), chunks, shuffle), start)

    def windows_of(self, batch: int) -> Iterator[tuple[Window, slice]]:
        """The windows that a global batch touches, with the part of each that is in it."""
        start, stop = self.span(batch)
        for index in range(self.window_at(start), self.window_at(stop - 1) + 1):
            window = self.window(index)
            yield window, slice(max(start, window.start) - window.start, min(stop, window.stop) - window.start)

    def batch(self, batch: int) -> Ints:
        """Row ids of a global batch, in order, [at most batch_rows]."""
        return np.concatenate([window.rows[part] for window, part in self.windows_of(batch)])

    def share(self, batch: int, *, rank: int, world_size: int) -> Ints:
        """Row ids of a global batch that ``rank`` reads, in order; possibly none."""
        parts = ((window.rows[part], window.places[part]) for window, part in self.windows_of(batch))
        return np.concatenate([rows[places % world_size == rank] for rows, places in parts])


def _stable_order(words: npt.NDArray[np.uint64]) -> Ints:
    """``argsort(words, kind="stable")``, several times as fast: the index takes the place of the lowest bits, and
    sorting words is faster than sorting indices. Where the bits that are left are not all different, which random words
    hardly ever are, the slow way decides."""
    low = np.uint64((1 << max(len(words) - 1, 0).bit_length()) - 1)
    packed = (words & ~low) | np.arange(len(words), dtype=np.uint64)
    packed.sort()
    high = packed & ~low
    if (high[1:] == high[:-1]).any():
        return np.argsort(words, kind="stable")
    return (packed & low).astype(np.int64)
