"""Which rows a reader gets, batch after batch, and the reading of them into buffers of the caller: all but torch.

The sequence of rows is that of ``EpochOrder``; the state is two integers. ``pipeline.order.feed`` makes tensors of
the batches, ``pipeline.order.arrays`` numpy arrays and Arrow batches.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.order.eligible import scan
from pipeline.order.epoch import EpochOrder, Window
from pipeline.order.keys import OrderKey, Split
from pipeline.order.quality import ShuffleQuality, shuffle_quality
from pipeline.order.window import Buffers, LoadedWindow, Mask, PlannedWindow, Prefetch, plan_window
from schemas.errors import HookPointError, SpecError, nearest
from schemas.train import RowFilter, RowOrder

if TYPE_CHECKING:
    from pipeline.store.arriving import FeedStore

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FeedState:
    """Where a feed goes on: the next global batch. Means the same on any rank of any world size."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Turn:
    """Every ``of``-th batch from the start on, beginning with number ``index``: the part of one of several readers that
    share a rank's batches."""

    index: int = 0
    of: int = 1


START = FeedState()
EVERY = Turn()


@dataclass(frozen=True)
class WordBatch:
    """One reader's share of a global batch: rows ``part`` of the set of buffers number ``buffer``. They stay as they
    are until the next batch is asked for, and may be changed."""

    epoch: int
    batch: int
    state_after: FeedState
    """Where to start to read the batch after this one."""
    rows: Ints
    """Row ids, [b]; owned by the consumer."""
    global_rows: int
    """Rows of the global batch, over all ranks."""
    buffer: int
    part: slice


class BatchReader:
    """The eligible rows of a store, shuffled, batched and shared among ranks."""

    def __init__(
        self,
        store: FeedStore,
        hook_points: Sequence[str],
        *,
        rows: RowFilter,
        order: RowOrder,
        batch_rows: int,
        rank: int = 0,
        world_size: int = 1,
        split: Split = "train",
        first_in_order: bool = False,
    ) -> None:
        """Scans the store's tokens once; see ``pipeline.order.eligible`` for what that costs. ``first_in_order``: the
        first epoch has its windows in the order of the store, since that is still being made; rows are then not held
        to be finite here, but by the step that they would spoil.

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
        self.key = OrderKey(store.fingerprint, rows, split, order, first_in_order)
        self.eligible = scan(store, [] if first_in_order else self.hook_points, rows, split)
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

    @property
    def buffer_rows(self) -> tuple[int, int, int]:
        """Rows that the three sets of buffers need: two windows, and a batch that lies in several."""
        filled = np.count_nonzero(self.eligible.counts)
        longest = min(self.key.order.window_chunks, int(filled))
        window = -(-longest // self.world_size) * int(self.eligible.counts.max())
        return window, window, self.batch_rows

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of an epoch."""
        return EpochOrder(self.eligible, self.key, epoch, batch_rows=self.batch_rows)

    def read(
        self, start: FeedState, buffers: tuple[Buffers, Buffers, Buffers], turn: Turn = EVERY
    ) -> Generator[WordBatch, None, None]:
        """Batches from ``start`` on, without end, read into ``buffers``, which have ``buffer_rows`` rows.

        The threads that read ahead live as long as the iterator: close it, or let it go.

        Raises:
            SpecError: ``start`` is not a state of this feed.
            DataError: while iterating, what the store raises when its bytes are not what they should be.
        """
        if start.epoch < 0 or not 0 <= start.batch < self.batches_per_epoch:
            raise SpecError(
                f"{start} is no state of a feed with {self.batches_per_epoch} batches an epoch: "
                "the checkpoint belongs to another store, filter or batch size"
            )
        return self._batches(start, buffers, turn)

    def _batches(
        self, state: FeedState, buffers: tuple[Buffers, Buffers, Buffers], turn: Turn
    ) -> Generator[WordBatch, None, None]:
        number = 0
        with Prefetch(self._windows(state, turn), self.store, buffers[:2]) as windows:
            window = windows.advance()
            while True:
                start = state.batch * self.batch_rows
                stop = min(start + self.batch_rows, self.rows_per_epoch)
                after = FeedState(state.epoch, state.batch + 1)
                if stop == self.rows_per_epoch:
                    after = FeedState(state.epoch + 1, 0)
                if number % turn.of == turn.index:
                    while window.plan.epoch != state.epoch or window.plan.stop <= start:
                        window = windows.advance()
                    if stop <= window.plan.stop:
                        part, buffer = window.plan.slice(start, stop), window.buffer
                        rows = window.plan.rows[part].copy()
                    else:
                        window, rows = _join(windows, window, buffers, start, stop)
                        part, buffer = slice(0, len(rows)), 2
                    yield WordBatch(state.epoch, state.batch, after, rows, stop - start, buffer, part)
                state, number = after, number + 1

    def _windows(self, state: FeedState, turn: Turn) -> Iterator[PlannedWindow]:
        """Windows from the one that holds the state's first row, without end."""
        epoch, order = state.epoch, self.epoch(state.epoch)
        index = order.window_at(order.span(state.batch)[0])
        while True:
            for at in range(index, order.num_windows):
                window = order.window(at)
                number = (epoch - state.epoch) * self.batches_per_epoch - state.batch
                yield plan_window(epoch, window, self._mine(window, turn, number))
            epoch, index = epoch + 1, 0
            order = self.epoch(epoch)

    def _mine(self, window: Window, turn: Turn, first_number: int) -> Mask | None:
        """Which of the window's rows this reader reads; None: all. ``first_number``: the number, counted from the
        start, of the epoch's first batch."""
        if self.world_size == turn.of == 1:
            return None
        mine: Mask = window.places % self.world_size == self.rank
        batches = np.arange(window.start, window.stop) // self.batch_rows
        mine &= (batches + first_number) % turn.of == turn.index
        return mine

    def shuffle_quality(self, state: FeedState = START) -> ShuffleQuality:
        """Measure one global batch: works out the window that it lies in."""
        return self.quality_of(self.epoch(state.epoch).batch(state.batch))

    def quality_of(self, rows: Ints) -> ShuffleQuality:
        """Measure the rows of a global batch. Takes a millisecond; of a shuffled store their tokens are read."""
        known = self.eligible.contexts
        contexts = known.of(rows) if known is not None else self._contexts_of(rows)
        return shuffle_quality(contexts, self.eligible.same_context_rate)

    def _contexts_of(self, rows: Ints) -> Ints:
        contexts = np.empty_like(rows)
        chunks = rows // self.store.record.chunk_rows
        for chunk in np.unique(chunks).tolist():
            inside = chunks == chunk
            first, last = int(rows[inside].min()), int(rows[inside].max()) + 1
            tokens = self.store.tokens(first, last)
            contexts[inside] = tokens.context[rows[inside] - first]
        return contexts


def _join(
    windows: Prefetch, window: LoadedWindow, buffers: Sequence[Buffers], start: int, stop: int
) -> tuple[LoadedWindow, Ints]:
    """A batch that lies in several windows, copied together into the last set of buffers; and the last window."""
    rows: list[Ints] = []
    filled = 0
    while True:
        plan = window.plan
        part = plan.slice(start, stop)
        rows.append(plan.rows[part])
        for hook, words in buffers[window.buffer].items():
            buffers[2][hook][filled : filled + len(rows[-1])] = words[part]
        filled += len(rows[-1])
        if stop <= plan.stop:
            return window, np.concatenate(rows)
        window = windows.advance()
