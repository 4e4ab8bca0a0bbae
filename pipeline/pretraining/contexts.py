"""The contexts of a token table in memory, and the order in which training sees them.

A batch is a function of the seed and the step alone: step s is batch ``s % batches`` of epoch ``s // batches``, and
each epoch has a permutation of its own. The same for any number of ranks, and no state to be kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.order.permutation import KeyedPermutation
from pipeline.tokens.reading import TokenTable
from schemas.errors import SpecError
from schemas.fingerprint import fingerprint

Ints = NDArray[np.int64]
_ROWS_AT_A_TIME = 2**20
_MOST_UINT16 = 2**16


@dataclass(frozen=True)
class Contexts:
    """Contexts of one split, one after the other."""

    token_id: NDArray[np.integer[Any]]
    """[T]; 2 bytes each where the vocabulary allows it."""
    start: Ints
    """[N + 1] where each begins, and the end."""

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def lengths(self) -> Ints:
        """Tokens of each."""
        return np.diff(self.start)

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted: all but the first of each context."""
        return int(self.lengths.sum()) - len(self)

    def take(self, indices: Ints, width: int) -> tuple[Ints, Ints]:
        """``(token ids [B, width], lengths [B])``; behind the end of a context stands 0."""
        ids = np.zeros((len(indices), width), np.int64)
        for line, index in zip(ids, indices, strict=True):
            first, last = self.start[index], self.start[index + 1]
            line[: last - first] = self.token_id[first:last]
        return ids, self.lengths[indices]

    def first(self, num_tokens: int) -> Contexts:
        """The first contexts, as many as have that many tokens together, at least one if there is one."""
        count = int(np.searchsorted(self.start, num_tokens, side="right")) - 1
        count = min(max(1, count), len(self))
        return Contexts(self.token_id[: self.start[count]], self.start[: count + 1])


@dataclass(frozen=True)
class Splits:
    """All contexts of a table that have a token to predict."""

    train: Contexts
    held_out: Contexts


def read_contexts(table: TokenTable, vocab_size: int) -> Splits:
    """Read the whole table. The last context is taken whole, also where it goes beyond ``num_rows``."""
    dtype: type[np.integer[Any]] = np.uint16 if vocab_size <= _MOST_UINT16 else np.int32
    parts: dict[bool, list[NDArray[np.int32]]] = {False: [], True: []}
    for token_id, held_out in _whole_contexts(table):
        if len(token_id) > 1:
            parts[held_out].append(token_id)
    return Splits(*(_joined(parts[held_out], dtype) for held_out in (False, True)))


def _whole_contexts(table: TokenTable) -> Iterator[tuple[NDArray[np.int32], bool]]:
    first, end = 0, table.covering(0, table.num_rows)[1]
    while first < end:
        stop = min(table.covering(first, min(first + _ROWS_AT_A_TIME, end))[1], end)
        rows = table.rows(first, stop)
        starts = [*np.flatnonzero(rows.position == 0).tolist(), len(rows)]
        for begin, last in pairwise(starts):
            yield np.asarray(rows.token_id[begin:last]), bool(rows.held_out[begin])
        first = stop


def _joined(parts: list[NDArray[np.int32]], dtype: type[np.integer[Any]]) -> Contexts:
    start = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    token_id = np.concatenate(parts) if parts else np.empty(0, np.int32)
    return Contexts(token_id.astype(dtype), start)


class Batches:
    """Which contexts are in which batch."""

    def __init__(self, num_contexts: int, batch_contexts: int, seed: int) -> None:
        """
        Raises:
            SpecError: there are not enough contexts for one batch.
        """
        if num_contexts < batch_contexts:
            raise SpecError(
                f"a batch has {batch_contexts} contexts (batch_tokens / tokens.packing.context_length), but the corpus "
                f"gives {num_contexts} to train on: lower batch_tokens, or take more text"
            )
        self._num_contexts, self._batch_contexts, self._seed = num_contexts, batch_contexts, seed
        self.per_epoch = num_contexts // batch_contexts
        """Batches of an epoch."""
        self._epoch, self._permutation = -1, KeyedPermutation(num_contexts, 0)

    def at(self, step: int) -> Ints:
        """Contexts of the batch that step ``step`` (0-based) is taken on."""
        epoch, batch = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            facts = {"purpose": "contexts of a model's training", "seed": self._seed, "epoch": epoch}
            self._epoch = epoch
            self._permutation = KeyedPermutation(self._num_contexts, int(fingerprint(facts)[:32], 16))
        first = batch * self._batch_contexts
        return self._permutation.apply(np.arange(first, first + self._batch_contexts))


def share_of(indices: Ints, rank: int, size: int) -> Ints:
    """The part of a batch that a rank runs; parts differ by one context at most."""
    return indices[len(indices) * rank // size : len(indices) * (rank + 1) // size]
