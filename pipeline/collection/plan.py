"""Which contexts one unit runs and how they are batched: pure functions of the table's rows.

A unit is one shard of the store: a range of rows, cut without regard to contexts. It runs every context that overlaps
its rows, so a context at a border is run by both neighbours, yet each row is written by exactly one unit. The batches
depend on nothing but the rows and ``batch_tokens``: a retry on another worker runs the same batches and so writes the
same bytes (on the same hardware).

Letters: T rows, C contexts, B contexts in a batch, L tokens in the longest of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.errors import CorruptionError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Contexts that pass through the model together, padded on the right."""

    starts: Ints
    """First row of each context, counted from the first row of the unit's covering rows, int64[B]."""
    lengths: Ints
    """Tokens of each context, int64[B], longest first."""

    @property
    def width(self) -> int:
        """L, the padded length."""
        return int(self.lengths[0])

    @property
    def padded_tokens(self) -> int:
        """What the forward pass costs, padding included."""
        return self.width * len(self.starts)

    def token_matrix(self, token_ids: NDArray[np.int32]) -> Ints:
        """int64[B, L] from the covering rows' token ids int32[T]; padding is token 0, which masking hides."""
        matrix = np.zeros((len(self.starts), self.width), dtype=np.int64)
        for line, start, length in zip(matrix, self.starts, self.lengths, strict=True):
            line[:length] = token_ids[start : start + length]
        return matrix


def context_bounds(positions: NDArray[np.int32]) -> tuple[Ints, Ints]:
    """Starts and lengths, int64[C] each, of the contexts in rows whose place in their context is int32[T].

    Raises:
        CorruptionError: the first row is not the first of its context, so the left part of it would be missing.
    """
    starts = np.flatnonzero(positions == 0).astype(np.int64)
    if len(positions) and (not len(starts) or starts[0] != 0):
        raise CorruptionError(
            f"the rows of a unit begin in the middle of a context (position {int(positions[0])}, expected 0); "
            "the token table is damaged: delete it and run again"
        )
    return starts, np.diff(starts, append=len(positions)).astype(np.int64)


def unit_batches(positions: NDArray[np.int32], batch_tokens: int) -> list[Batch]:
    """Batches over all contexts of a unit's covering rows, each context in exactly one.

    Sorted by length, longest first and in table order among equals, then cut greedily: a batch holds as many contexts
    as fit in ``batch_tokens`` padded tokens, and at least one.
    """
    starts, lengths = context_bounds(positions)
    order = np.argsort(-lengths, kind="stable")
    batches = []
    at = 0
    while at < len(order):
        size = max(1, batch_tokens // int(lengths[order[at]]))
        chosen = order[at : at + size]
        batches.append(Batch(starts[chosen], lengths[chosen]))
        at += size
    return batches
