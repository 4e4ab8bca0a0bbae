"""Choosing whole contexts of a store, in a seeded order, without reading the tokens of all of it.

1. permute the units by the seed
2. take the next 64 units, find the contexts that lie wholly within one
3. permute those and take them until enough rows are there, else go on with 2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.store.joined import AnyStore
from pipeline.store.rows import TokenRows

UNITS_AT_ONCE = 64
"""Units whose contexts are mixed: 2 million rows at the default shard size, some 50 MB of tokens."""

Bounds = tuple[int, int]
"""First row of a context and the row after its last."""


def context_bounds(position: npt.NDArray[np.int32], start_row: int, *, ends: bool) -> list[Bounds]:
    """Contexts that begin in a run of rows, given each row's position in its context.

    ``ends``: the run's end is also the end of a context (end of the store); otherwise its last context may go on in the
    next run and is left out.
    """
    edges = [start_row + int(place) for place in np.flatnonzero(position == 0)]
    pairs = list(pairwise([*edges, start_row + len(position)]))
    return pairs if ends else pairs[:-1]


def choose_contexts(store: AnyStore, *, num_rows: int, split: Literal["held_out", "all"], seed: int) -> list[Bounds]:
    """Contexts of at most ``num_rows`` rows in all, sorted by row; the last one chosen may be cut short at its end."""
    generator = np.random.Generator(np.random.Philox(seed))
    units = generator.permutation(store.num_units)
    chosen: list[Bounds] = []
    left = num_rows
    for first in range(0, len(units), UNITS_AT_ONCE):
        found = [
            bounds for unit in units[first : first + UNITS_AT_ONCE] for bounds in _of_unit(store, int(unit), split)
        ]
        for index in generator.permutation(len(found)):
            start, stop = found[index]
            stop = min(stop, start + left)
            chosen.append((start, stop))
            left -= stop - start
            if left == 0:
                return sorted(chosen)
    return sorted(chosen)


def read_tokens(store: AnyStore, contexts: Sequence[Bounds]) -> TokenRows:
    """The tokens of contexts that are sorted by row, one after the other; each unit's tokens are read once."""
    parts: list[TokenRows] = []
    shard_rows = store.record.shard_rows
    for unit, own in groupby(contexts, key=lambda bounds: bounds[0] // shard_rows):
        start = unit * shard_rows
        tokens = store.tokens(start, min(start + shard_rows, store.num_rows))
        parts += [tokens.slice(first - start, last - start) for first, last in own]
    return TokenRows.concat(parts)


def _of_unit(store: AnyStore, unit: int, split: Literal["held_out", "all"]) -> Iterator[Bounds]:
    start = unit * store.record.shard_rows
    stop = min(start + store.record.shard_rows, store.num_rows)
    tokens = store.tokens(start, stop)
    for bounds in context_bounds(tokens.position, start, ends=stop == store.num_rows):
        if split == "all" or bool(tokens.held_out[bounds[0] - start]):
            yield bounds
