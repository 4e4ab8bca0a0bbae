"""What a training rank iterates over: its share of every global batch, endless, from any (epoch, batch).

Reads a store, yields tensors. The sequence of rows is that of ``EpochOrder``; the state is two integers. Memory: two
windows of this rank's rows for each hook point, plus one batch.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.order.batches import EVERY, START, BatchReader, FeedState, Turn, WordBatch
from pipeline.order.epoch import EpochOrder
from pipeline.order.keys import Split
from pipeline.order.quality import ShuffleQuality
from pipeline.order.window import Buffers, row_dtype
from pipeline.store.statistics import mean_norm
from schemas.errors import DivergenceError
from schemas.train import RowFilter, RowOrder

if TYPE_CHECKING:
    from pipeline.store.arriving import FeedStore

Ints = npt.NDArray[np.int64]

__all__ = ["FeedBatch", "FeedState", "RowFeed", "scales"]

_TORCH_DTYPES = {"u2": torch.bfloat16, "f2": torch.float16, "f4": torch.float32}


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
    """hook point -> [b, D] in the stored dtype (lossy dtypes: float32 values), unscaled, row-aligned with ``rows`` and
    with each other."""


class RowFeed:
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
        pin_memory: bool = False,
        first_in_order: bool = False,
    ) -> None:
        """Scans the store's tokens once; see ``pipeline.order.eligible`` for what that costs. ``pin_memory``: batches
        lie in page-locked memory, from which a GPU copies without waiting. ``first_in_order``: see ``BatchReader``.

        Raises:
            HookPointError: the store has no such hook point.
            SpecError: no row is left, or the rank is not one of the world.
            DivergenceError: an eligible row is not finite.
        """
        self._reader = BatchReader(
            store,
            hook_points,
            rows=rows,
            order=order,
            batch_rows=batch_rows,
            rank=rank,
            world_size=world_size,
            split=split,
            first_in_order=first_in_order,
        )
        self._pin_memory = pin_memory
        self.store = store
        self.hook_points = self._reader.hook_points
        self.batch_rows = batch_rows
        self.rank = rank
        self.world_size = world_size
        self.key = self._reader.key
        self.eligible = self._reader.eligible

    @property
    def rows_per_epoch(self) -> int:
        """Eligible rows, over all ranks."""
        return self._reader.rows_per_epoch

    @property
    def batches_per_epoch(self) -> int:
        """Global batches, the last of them possibly short."""
        return self._reader.batches_per_epoch

    @property
    def identity(self) -> dict[str, Any]:
        """Facts that give a ``FeedState`` its meaning; a checkpoint keeps them and a resumed run compares them."""
        return self._reader.identity

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of an epoch."""
        return self._reader.epoch(epoch)

    def shuffle_quality(self, state: FeedState = START) -> ShuffleQuality:
        """Measure one global batch: works out the window that it lies in."""
        return self._reader.shuffle_quality(state)

    def quality_of(self, batch: FeedBatch) -> ShuffleQuality:
        """Measure the global batch of which this is a share: in a millisecond where there is one rank only."""
        if self.world_size == 1:
            return self._reader.quality_of(batch.rows)
        return self._reader.shuffle_quality(FeedState(batch.epoch, batch.batch))

    def iterate(self, start: FeedState = START, turn: Turn = EVERY) -> Generator[FeedBatch, None, None]:
        """Batches from ``start`` on, without end. Every rank gets the same number of them.

        The threads that read ahead live as long as the iterator: close it, or let it go. ``turn``: only every
        so-many-th batch, for one of several readers that share the rank's batches.

        Raises:
            SpecError: ``start`` is not a state of this feed.
            DataError: while iterating, what the store raises when its bytes are not what they should be.
        """
        first, second, joined = (self._allocate(rows) for rows in self._reader.buffer_rows)
        words = self._reader.read(start, (_words_of(first), _words_of(second), _words_of(joined)), turn)
        return self._batches(words, (first, second, joined))

    def _batches(
        self, batches: Generator[WordBatch, None, None], tensors: Sequence[dict[str, Tensor]]
    ) -> Generator[FeedBatch, None, None]:
        with closing(batches):
            for one in batches:
                activations = {hook: tensor[one.part] for hook, tensor in tensors[one.buffer].items()}
                yield FeedBatch(one.epoch, one.batch, one.state_after, one.rows, one.global_rows, activations)

    def _allocate(self, num_rows: int) -> dict[str, Tensor]:
        """hook point -> uninitialised [num_rows, D]."""
        dtype = _TORCH_DTYPES[row_dtype(self.store).str[1:]]
        return {
            hook: torch.empty((num_rows, self.store.hook_points[hook]), dtype=dtype, pin_memory=self._pin_memory)
            for hook in self.hook_points
        }


def _words_of(tensors: dict[str, Tensor]) -> Buffers:
    """The tensors' memory as numpy sees stored words: bfloat16 as uint16, other types as themselves. No copy."""
    return {
        hook: tensor.view(torch.uint16).numpy() if tensor.dtype is torch.bfloat16 else tensor.numpy()
        for hook, tensor in tensors.items()
    }


def scales(store: FeedStore, hook_points: Sequence[str], normalise: Literal["mean_norm", "none"]) -> dict[str, float]:
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
