"""The shuffled rows of a store as a torch ``IterableDataset``, for a ``DataLoader`` or by itself.

Each item is a whole batch (``DataLoader(..., batch_size=None)``). The sequence of batches is that of ``RowFeed``: the
same for any number of loader processes, which take batches in turn. Ranks share every global batch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.order.batches import Turn
from pipeline.order.feed import FeedBatch, FeedState, RowFeed
from pipeline.order.keys import Split
from pipeline.store.joined import AnyStore
from pipeline.store.reader import Store
from schemas.errors import SpecError
from schemas.fingerprint import require_equal
from schemas.train import RowFilter, RowOrder

_FILTER, _ORDER = RowFilter(), RowOrder()


class ActivationBatch(NamedTuple):
    """One rank's share of a global batch. The tensors belong to the consumer, unless the dataset was told otherwise."""

    rows: Tensor
    """Row ids, int64 [b]."""
    activations: dict[str, Tensor]
    """hook point -> [b, D] in the stored dtype, row-aligned."""
    state: dict[str, Any]
    """For ``load_state_dict``: goes on behind this batch."""


class ActivationDataset(IterableDataset[ActivationBatch]):
    """Epochs of shuffled batches, from a state on.

    Loader processes (``num_workers > 0``) each read what their own batches need: each touches every chunk. That is
    cheap where chunks are uncompressed files, and multiplies the work of decoding or fetching elsewhere; the reader has
    threads of its own, so ``num_workers=0`` is the fast way nearly always.
    """

    def __init__(
        self,
        store: AnyStore | str,
        hook_points: Sequence[str],
        *,
        batch_rows: int,
        rows: RowFilter = _FILTER,
        order: RowOrder = _ORDER,
        split: Split = "train",
        epochs: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
        pin_memory: bool = False,
        copy: bool = True,
    ) -> None:
        """``batch_rows``: of a global batch, over all ranks. ``epochs``: how many there are; iteration ends behind the
        last. ``rank``, ``world_size``: those of ``torch.distributed`` where it runs, else 0 of 1. ``copy=False``:
        batches are views of the reader's buffers (with ``pin_memory`` page-locked ones) that the next batch overwrites;
        not with loader processes.

        Raises: as ``RowFeed``.
        """
        super().__init__()
        if (rank is None) != (world_size is None):
            raise SpecError(f"give rank and world_size together, or neither; got {rank} and {world_size}")
        runs = distributed.is_available() and distributed.is_initialized()
        self.feed = RowFeed(
            Store.open(store) if isinstance(store, str) else store,
            hook_points,
            rows=rows,
            order=order,
            batch_rows=batch_rows,
            rank=rank if rank is not None else distributed.get_rank() if runs else 0,
            world_size=world_size if world_size is not None else distributed.get_world_size() if runs else 1,
            split=split,
            pin_memory=pin_memory,
        )
        self.epochs = epochs
        self._copy = copy
        self._start = self._after = FeedState()
        self._identity = self.feed.identity

    def __len__(self) -> int:
        """Batches from the start on that iteration will give."""
        done = self._start.epoch * self.feed.batches_per_epoch + self._start.batch
        return max(0, self.epochs * self.feed.batches_per_epoch - done)

    def __iter__(self) -> Iterator[ActivationBatch]:
        """From the state that was loaded last, else from the beginning. Every call begins there again."""
        worker = get_worker_info()
        if worker is not None and not self._copy:
            raise SpecError("copy=False cannot be used with loader processes: set num_workers=0, or copy=True")
        turn = Turn() if worker is None else Turn(worker.id, worker.num_workers)
        return self._batches(turn)

    def state_dict(self) -> dict[str, Any]:
        """Where to go on behind the batch that was given out last; needs no loader processes.

        Raises:
            SpecError: in a loader process, which knows of its own batches only.
        """
        if get_worker_info() is not None:
            raise SpecError("a loader process does not know where training is: keep the batch's own `state` instead")
        return self._state(self._after)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` says, on any number of ranks and loader processes.

        Raises:
            MismatchError: it is of another store, filter, order or batch size.
        """
        remedy = "Resume with the settings that the state was saved with."
        require_equal(self._identity, state["identity"], where="the saved state of the dataset", remedy=remedy)
        self._start = self._after = FeedState(int(state["epoch"]), int(state["batch"]))

    def _batches(self, turn: Turn) -> Generator[ActivationBatch, None, None]:
        if not len(self):
            return
        number = turn.index
        with closing(self.feed.iterate(self._start, turn)) as batches:
            while number < len(self):
                one = next(batches)
                number += turn.of
                self._after = one.state_after
                yield self._item(one)

    def _item(self, one: FeedBatch) -> ActivationBatch:
        activations = {hook: acts.clone() if self._copy else acts for hook, acts in one.activations.items()}
        return ActivationBatch(torch.from_numpy(one.rows), activations, self._state(one.state_after))

    def _state(self, after: FeedState) -> dict[str, Any]:
        return {"epoch": after.epoch, "batch": after.batch, "identity": self._identity}
