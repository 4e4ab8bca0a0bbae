from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order.contexts import ContextIndex
from pipeline.order.eligible import EligibleRows
from pipeline.order.keys import OrderKey
from pipeline.order.whole import ContextOrder
from schemas.train import RowFilter, RowOrder

CHUNK = 8


def order(lengths: Sequence[int], held_out: Sequence[bool], per_step: int, seed: int = 0) -> ContextOrder:
    """Contexts of these lengths; of those not held out all rows but the first are eligible."""
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    num_rows = int(np.sum(lengths))
    begins, mask = np.zeros(num_rows, dtype=bool), np.repeat(np.logical_not(held_out), lengths)
    begins[starts], mask[starts] = True, False
    eligible = EligibleRows.of_mask(mask, chunk_rows=CHUNK)
    pieces = [np.packbits(begins[at : at + CHUNK]) for at in range(0, num_rows, CHUNK)]
    eligible.contexts = ContextIndex(pieces, chunk_rows=CHUNK)
    key = OrderKey("store", RowFilter(), "train", RowOrder(seed=seed))
    return ContextOrder(eligible, key, num_rows=num_rows, contexts_per_step=per_step)


@settings(deadline=None, max_examples=25)  # an example takes a tenth of a second
@given(
    st.lists(st.tuples(st.integers(2, 20), st.booleans()), min_size=1, max_size=30).filter(
        lambda contexts: not all(held_out for _, held_out in contexts)
    ),
    st.integers(1, 7),
)
def test_each_whole_context_comes_once_before_any_comes_twice(contexts: list[tuple[int, bool]], per_step: int) -> None:
    lengths, held_out = zip(*contexts, strict=True)
    ends = np.cumsum(lengths)
    expected = {
        (int(end - length), int(end)) for length, out, end in zip(lengths, held_out, ends, strict=True) if not out
    }
    made = order(lengths, held_out, per_step)
    assert len(made) == len(expected)
    drawn = [bounds for step in range(2 * len(expected)) for bounds in made.at(step)]
    for turn in range(2 * per_step):
        assert set(drawn[turn * len(expected) : (turn + 1) * len(expected)]) == expected


def test_passes_and_seeds_differ() -> None:
    made, other = (order([4] * 50, [False] * 50, 50, seed) for seed in (0, 1))
    assert made.at(0) == order([4] * 50, [False] * 50, 50).at(0)
    assert made.at(0) != made.at(1)
    assert made.at(0) != other.at(0)
