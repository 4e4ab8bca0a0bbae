"""A unit's batches: every context once, deterministic, within the budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.collection.plan import context_bounds, unit_batches
from schemas.errors import CorruptionError

CONTEXTS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def positions(lengths: list[int]) -> np.ndarray:
    return np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])


@given(lengths=CONTEXTS, batch_tokens=st.integers(1, 300))
def test_each_row_is_run_exactly_once(lengths: list[int], batch_tokens: int) -> None:
    rows = positions(lengths)
    seen = np.zeros(len(rows), dtype=int)
    for batch in unit_batches(rows, batch_tokens):
        for start, length in zip(batch.starts, batch.lengths, strict=True):
            assert rows[start] == 0
            seen[start : start + length] += 1
    assert (seen == 1).all()


@given(lengths=CONTEXTS, batch_tokens=st.integers(1, 300))
def test_a_batch_keeps_within_its_tokens_unless_one_context_is_longer(lengths: list[int], batch_tokens: int) -> None:
    for batch in unit_batches(positions(lengths), batch_tokens):
        assert batch.padded_tokens <= batch_tokens or len(batch.starts) == 1
        assert batch.width == batch.lengths.max()


def test_contexts_of_equal_length_stay_in_order() -> None:
    batches = unit_batches(positions([3, 4, 4, 2, 4]), 8)
    assert [batch.starts.tolist() for batch in batches] == [[3, 7], [13, 0], [11]]
    assert [batch.lengths.tolist() for batch in batches] == [[4, 4], [4, 3], [2]]


def test_the_token_matrix_is_padded_on_the_right() -> None:
    (batch,) = unit_batches(positions([2, 3]), 100)
    tokens = np.array([7, 8, 1, 2, 3], dtype=np.int32)
    assert batch.token_matrix(tokens).tolist() == [[1, 2, 3], [7, 8, 0]]


def test_rows_that_begin_within_a_context_are_refused() -> None:
    with pytest.raises(CorruptionError, match="position 2"):
        context_bounds(np.array([2, 3, 0, 1], dtype=np.int32))
    with pytest.raises(CorruptionError, match="middle of a context"):
        context_bounds(np.array([1, 2], dtype=np.int32))


def test_no_rows_have_no_contexts() -> None:
    starts, lengths = context_bounds(np.zeros(0, dtype=np.int32))
    assert len(starts) == len(lengths) == 0
