"""What a training rank iterates over: its share of every global batch, endless, from any (epoch, batch).

Reads a store, yields tensors. The sequence of rows is that of ``EpochOrder``; the state is two integers. Memory: two
windows of this rank's rows for each hook point, plus one batch.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.order.eligible import scan
from pipeline.order.epoch import EpochOrder, Window
from pipeline.order.keys import OrderKey, Split
from pipeline.order.quality import ShuffleQuality, shuffle_quality
from pipeline.order.window import Buffers, LoadedWindow, Prefetch, allocate, load_window
from pipeline.store.statistics import mean_norm
from schemas.errors import DivergenceError, HookPointError, SpecError, nearest
from schemas.train import RowFilter, RowOrder

if TYPE_CHECKING:
    from threading import Event

    from pipeline.store.reader import Store

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FeedState:
    """Where a feed goes on: the next global batch. Means the same on any rank of any world size."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class FeedBatch:
    """One rank's share of a global batch.

    ``activations`` are views of the feed's buffers: they are valid until the next batch is asked for, and a consumer
    that keeps them, or copies them to a device without waiting, must clone or synchronise before that. They may be
    changed in place. ``rows`` belongs to the consumer.
    """

    epoch: int
    batch: int
    state_after: FeedState
    """Where to start to read the batch after this one."""
    rows: Ints
    """Row ids, [b]; b may be 0 and differs from rank to rank."""
    global_rows: int
    """Rows of the global batch, over all ranks: what a mean over the batch divides by."""
    activations: dict[str, Tensor]
    """hook point -> [b, D] in the stored dtype, unscaled, row-aligned with ``rows`` and with each other."""


class RowFeed:
    """The eligible rows of a store, shuffled, batched and shared among ranks."""

    def __init__(
        self,
        store: Store,
        hook_points: Sequence[str],
        *,
        rows: RowFilter,
        order: RowOrder,
        batch_rows: int,
        rank: int = 0,
        world_size: int = 1,
        split: Split = "train",
        pin_memory: bool = False,
    ) -> None:
        """Scans the store's tokens once; see ``pipeline.order.eligible`` for what that costs.

        Raises:
            HookPointError: the store has no such hook point.
            SpecError: no row is left, or the rank is not one of the world.
            DivergenceError: an eligible row is not finite.
        """
        for hook in hook_points:
            if hook not in store.hook_points:
                known = ", ".join(sorted(store.hook_points))
                raise HookPointError(
                    f"{store.url} has no hook point {hook!r}{nearest(hook, store.hook_points)} It has: {known}."
                )
        if not 0 <= rank < world_size or batch_rows < 1:
            raise SpecError(
                f"a feed needs 0 <= rank < world_size and batch_rows >= 1; got rank {rank}, "
                f"world_size {world_size}, batch_rows {batch_rows}"
            )
        self.store = store
        self.hook_points = list(dict.fromkeys(hook_points))
        self.batch_rows = batch_rows
        self.rank = rank
        self.world_size = world_size
        self.key = OrderKey(store.fingerprint, rows, split, order)
        self.eligible = scan(store, self.hook_points, rows, split)
        self._pin_memory = pin_memory
        if not self.eligible.num_rows:
            raise SpecError(
                f"no row of {store.url} is left to read: of {store.num_rows} rows, split {split!r} with the filter "
                f"{rows.model_dump()} leaves none. Collect more tokens, or filter less."
            )

    @property
    def rows_per_epoch(self) -> int:
        """Eligible rows, over all ranks."""
        return self.eligible.num_rows

    @property
    def batches_per_epoch(self) -> int:
        """Global batches, the last of them possibly short."""
        return -(-self.rows_per_epoch // self.batch_rows)

    @property
    def identity(self) -> dict[str, Any]:
        """Facts that give a ``FeedState`` its meaning; a checkpoint keeps them and a resumed run compares them."""
        return {
            **self.key.facts(),
            "store_rows": self.store.num_rows,
            "rows_per_epoch": self.rows_per_epoch,
            "batch_rows": self.batch_rows,
        }

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of an epoch."""
        return EpochOrder(self.eligible, self.key, epoch, batch_rows=self.batch_rows)

    def iterate(self, start: FeedState = FeedState()) -> Generator[FeedBatch, None, None]:
        """Batches from ``start`` on, without end. Every rank gets the same number of them.

        The thread that reads ahead lives as long as the iterator: close it, or let it go.

        Raises:
            SpecError: ``start`` is not a state of this feed.
            DataError: while iterating, what the store raises when its bytes are not what they should be.
        """
        if start.epoch < 0 or not 0 <= start.batch < self.batches_per_epoch:
            raise SpecError(
                f"{start} is no state of a feed with {self.batches_per_epoch} batches an epoch: "
                "the checkpoint belongs to another store, filter or batch size"
            )
        return self._batches(start)

    def _batches(self, state: FeedState) -> Generator[FeedBatch, None, None]:
        size = self._rows_of_a_window()
        first, second, joined = (self._buffers(rows) for rows in (size, size, self.batch_rows))
        with Prefetch(self._windows(state), self._load, (first, second)) as windows:
            window = windows.advance()
            while True:
                start = state.batch * self.batch_rows
                stop = min(start + self.batch_rows, self.rows_per_epoch)
                after = FeedState(state.epoch, state.batch + 1)
                if stop == self.rows_per_epoch:
                    after = FeedState(state.epoch + 1, 0)
                if window.epoch != state.epoch or window.stop <= start:
                    window = windows.advance()
                if stop <= window.stop:
                    part = window.slice(start, stop)
                    rows, activations = window.rows[part].copy(), _cut(window.activations, part)
                else:
                    window, rows, activations = _join(windows, window, joined, start, stop)
                yield FeedBatch(state.epoch, state.batch, after, rows, stop - start, activations)
                state = after

    def _windows(self, state: FeedState) -> Iterator[tuple[int, Window]]:
        """``(epoch, window)`` from the one that holds the state's first row, without end."""
        epoch, order = state.epoch, self.epoch(state.epoch)
        index = order.window_at(order.span(state.batch)[0])
        while True:
            for at in range(index, order.num_windows):
                yield epoch, order.window(at)
            epoch, index = epoch + 1, 0
            order = self.epoch(epoch)

    def _load(self, epoch: int, window: Window, buffers: Buffers, stop: Event) -> LoadedWindow:
        return load_window(
            self.store, window, buffers, epoch=epoch, rank=self.rank, world_size=self.world_size, stop=stop
        )

    def _buffers(self, num_rows: int) -> Buffers:
        return allocate(self.store, self.hook_points, num_rows, pin_memory=self._pin_memory)

    def _rows_of_a_window(self) -> int:
        """Most rows that this rank can own in a window of any epoch."""
        filled = np.count_nonzero(self.eligible.counts)
        longest = min(self.key.order.window_chunks, int(filled))
        return -(-longest // self.world_size) * int(self.eligible.counts.max())

    def shuffle_quality(self, state: FeedState = FeedState()) -> ShuffleQuality:
        """Measure one global batch. Reads the tokens of its chunks: for a log line now and then, not for every step."""
        rows = self.epoch(state.epoch).batch(state.batch)
        contexts = np.empty_like(rows)
        chunks = rows // self.store.record.chunk_rows
        for chunk in np.unique(chunks).tolist():
            inside = chunks == chunk
            first, last = int(rows[inside].min()), int(rows[inside].max()) + 1
            tokens = self.store.tokens(first, last)
            contexts[inside] = (tokens.row - tokens.position)[rows[inside] - first]
        return shuffle_quality(contexts, self.eligible.same_context_rate)


def _cut(activations: dict[str, Tensor], part: slice) -> dict[str, Tensor]:
    return {hook: tensor[part] for hook, tensor in activations.items()}


def _join(
    windows: Prefetch, window: LoadedWindow, joined: Buffers, start: int, stop: int
) -> tuple[LoadedWindow, Ints, dict[str, Tensor]]:
    """A batch that lies in several windows, copied together into ``joined``; and the last of those windows."""
    rows: list[Ints] = []
    filled = 0
    while True:
        part = window.slice(start, stop)
        rows.append(window.rows[part])
        for hook, tensor in window.activations.items():
            joined[hook][filled : filled + len(rows[-1])].copy_(tensor[part])
        filled += len(rows[-1])
        if stop <= window.stop:
            return window, np.concatenate(rows), {hook: buffer[:filled] for hook, buffer in joined.items()}
        window = windows.advance()


def scales(store: Store, hook_points: Sequence[str], normalise: Literal["mean_norm", "none"]) -> dict[str, float]:
    """hook point -> factor of its activations: sqrt(D) / mean row norm over the whole store, or 1.

    Raises:
        DivergenceError: a hook point whose rows are all zero, or none of them finite.
    """
    if normalise == "none":
        return dict.fromkeys(hook_points, 1.0)
    factors: dict[str, float] = {}
    for hook in hook_points:
        norm = mean_norm(store.statistics[hook])
        if not (math.isfinite(norm) and norm > 0):
            raise DivergenceError(
                f"mean norm of {hook} in {store.url}: expected a positive number, got {norm}; "
                "check what was collected, or train with normalise: none"
            )
        factors[hook] = math.sqrt(store.hook_points[hook]) / norm
    return factors
