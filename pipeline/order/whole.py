"""Whole contexts in a seeded order, for what needs a forward of the model: a pure function of the order's key and step.

Contexts that hold an eligible row are permuted anew for every pass through them, so each comes once before any comes
twice. Ranks have no part in it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.order.eligible import EligibleRows
from pipeline.order.keys import OrderKey
from pipeline.order.permutation import KeyedPermutation

Bounds = tuple[int, int]
"""First row of a context and the row after its last."""


class ContextOrder:
    """Memory: 8 bytes a context."""

    def __init__(self, eligible: EligibleRows, key: OrderKey, *, num_rows: int, contexts_per_step: int) -> None:
        """``eligible`` must know the contexts of its rows; ``num_rows``: of the store."""
        assert eligible.contexts is not None
        self._index = eligible.contexts
        self._key = key
        self._num_rows = num_rows
        self._per_step = contexts_per_step
        found = [
            np.unique(self._index.of(eligible.rows_of(chunk))) for chunk in np.flatnonzero(eligible.counts).tolist()
        ]
        self._contexts: npt.NDArray[np.int64] = np.unique(np.concatenate(found))

    def __len__(self) -> int:
        return len(self._contexts)

    def at(self, step: int) -> list[Bounds]:
        """The contexts of a step, from 0 on."""
        first = step * self._per_step
        return [self._bounds(place) for place in range(first, first + self._per_step)]

    def _bounds(self, place: int) -> Bounds:
        turn, index = divmod(place, len(self._contexts))
        shuffle = KeyedPermutation(len(self._contexts), self._key.derive("contexts", epoch=turn))
        context = int(self._contexts[shuffle.apply(index)])
        is_last = context + 1 == self._index.num_contexts
        return self._index.first_row(context), self._num_rows if is_last else self._index.first_row(context + 1)
