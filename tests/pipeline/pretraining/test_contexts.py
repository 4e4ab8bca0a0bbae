"""Contexts in memory are those of the table, and every epoch goes through each of them once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import model_spec

from pipeline.pretraining.contexts import Batches, Contexts, Splits, read_contexts, share_of
from pipeline.pretraining.prepare import open_table, prepare
from schemas.errors import SpecError


def read(output: Path, **tokens: Any) -> tuple[Splits, Any]:
    spec = model_spec(str(output))
    spec = spec.model_copy(update={"tokens": type(spec.tokens).model_validate(spec.tokens.model_dump() | tokens)})
    table = open_table(prepare(spec))
    return read_contexts(table, 100), table


@pytest.mark.parametrize("mode", ["packed", "document"])
def test_contexts_are_those_of_the_table(tmp_path: Path, mode: str) -> None:
    packing = {"mode": mode, "context_length": 16, "separator": "eos"}
    splits, table = read(tmp_path / "out", packing=packing)
    rows = table.rows(0, table.num_written_rows)
    starts = [*np.flatnonzero(rows.position == 0), len(rows)]
    wanted: dict[bool, list[list[int]]] = {False: [], True: []}
    for first, last in pairwise(starts):
        if last - first > 1:
            wanted[bool(rows.held_out[first])].append(rows.token_id[first:last].tolist())
    for contexts, texts in ((splits.train, wanted[False]), (splits.held_out, wanted[True])):
        assert len(contexts) == len(texts)
        ids, lengths = contexts.take(np.arange(len(contexts)), 16)
        assert [line[:length].tolist() for line, length in zip(ids, lengths, strict=True)] == texts
        assert all(not line[length:].any() for line, length in zip(ids, lengths, strict=True))
        assert contexts.num_targets == sum(len(text) - 1 for text in texts)


def test_a_table_that_is_used_in_part_ends_with_a_whole_context(tmp_path: Path) -> None:
    splits, table = read(tmp_path / "out", max_tokens=100)
    assert table.num_rows == 112  # seven contexts of 16
    assert len(splits.train) + len(splits.held_out) == 7
    assert set(splits.train.lengths) | set(splits.held_out.lengths) == {16}


@settings(deadline=None)
@given(
    num_contexts=st.integers(1, 400),
    batch=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_has_each_context_at_most_once_and_whole_batches(
    num_contexts: int, batch: int, seed: int, epoch: int
) -> None:
    if num_contexts < batch:
        with pytest.raises(SpecError, match="lower batch_tokens"):
            Batches(num_contexts, batch, seed)
        return
    batches = Batches(num_contexts, batch, seed)
    steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
    seen = np.concatenate([batches.at(step) for step in steps])
    assert len(seen) == len(set(seen.tolist())) == num_contexts // batch * batch
    assert seen.min() >= 0
    assert seen.max() < num_contexts
    # The step alone decides, whatever was asked before.
    assert np.array_equal(Batches(num_contexts, batch, seed).at(steps[-1]), batches.at(steps[-1]))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    batches = Batches(100, 100, 0)
    orders = [batches.at(0), batches.at(1), Batches(100, 100, 1).at(0)]
    assert len({tuple(order) for order in orders}) == 3


@given(size=st.integers(1, 9), count=st.integers(0, 50))
def test_ranks_share_a_batch_out(size: int, count: int) -> None:
    batch = np.arange(count)
    parts = [share_of(batch, rank, size) for rank in range(size)]
    assert np.array_equal(np.concatenate(parts), batch)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_first_contexts_are_whole_and_at_least_one() -> None:
    contexts = Contexts(np.arange(30), np.array([0, 10, 20, 30]))
    assert [len(contexts.first(count)) for count in (1, 10, 19, 20, 25, 1000)] == [1, 1, 1, 2, 2, 3]
