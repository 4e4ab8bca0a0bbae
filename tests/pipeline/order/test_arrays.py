"""numpy and Arrow batches have the rows that the feed has, as the consumer's own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.order.batches import FeedState
from pipeline.order.feed import RowFeed
from pipeline.store.reader import Store
from pipeline.store.words import to_float32
from schemas.errors import HookPointError, SpecError
from schemas.train import RowFilter, RowOrder


@pytest.mark.parametrize("batch_rows", [1, 50, 96, 5000])
@pytest.mark.parametrize("span", [(0, 1003), (17, 400), (96, 192), (5, 5)])
def test_rows_in_order(counted: Any, store: Store, batch_rows: int, span: tuple[int, int]) -> None:
    if batch_rows == 1:
        span = (span[0], min(span[1], span[0] + 40))
    for as_words in (False, True):
        batches = [*store.iter_batches(batch_rows=batch_rows, start=span[0], stop=span[1], as_words=as_words)]
        assert all(len(batch.rows) == batch_rows for batch in batches[:-1])
        rows = np.concatenate([np.empty(0, int), *(batch.rows for batch in batches)])
        np.testing.assert_array_equal(rows, np.arange(*span))
        for hook, words in counted.words.items():
            expected = words if as_words else to_float32(words, "bfloat16")
            for batch in batches:
                np.testing.assert_array_equal(batch.activations[hook], expected[batch.rows])
                assert batch.activations[hook].flags.writeable
                assert batch.state_after is None


def test_shuffled_batches_are_the_feeds(store: Store) -> None:
    order, rows = RowOrder(seed=3, window_chunks=10), RowFilter()
    feed = RowFeed(store, ["mlp_out", "resid"], rows=rows, order=order, batch_rows=37)
    ours = store.iter_shuffled(["mlp_out", "resid"], order=order, rows=rows, split="train", batch_rows=37, epochs=2)
    count = 0
    kept = []
    for got, expected in zip(ours, feed.iterate(), strict=False):
        np.testing.assert_array_equal(got.rows, expected.rows)
        assert got.state_after == expected.state_after
        assert [*got.activations] == ["mlp_out", "resid"]
        for hook, tensor in expected.activations.items():
            np.testing.assert_array_equal(got.activations[hook], tensor.float().numpy())
        kept.append((got, {hook: array.copy() for hook, array in got.activations.items()}))
        count += 1
    assert count == 2 * feed.batches_per_epoch
    for batch, copies in kept:
        assert all(np.array_equal(batch.activations[hook], copy) for hook, copy in copies.items())


def test_shuffled_words_and_resuming(counted: Any, store: Store) -> None:
    order = RowOrder(seed=3, window_chunks=10)
    whole = [*store.iter_shuffled(order=order, batch_rows=100, epochs=2, as_words=True)]
    for batch in whole:
        np.testing.assert_array_equal(batch.activations["resid"], counted.words["resid"][batch.rows])
    assert sorted(np.concatenate([batch.rows for batch in whole[:11]])) == list(range(1003))
    assert whole[-1].state_after == FeedState(2, 0)
    rest = [*store.iter_shuffled(order=order, batch_rows=100, epochs=2, state=whole[13].state_after)]
    assert [b.rows.tolist() for b in rest] == [b.rows.tolist() for b in whole[14:]]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_float_values_are_the_consumers_own(write_store: Callable[..., Any], dtype: str) -> None:
    """float32 values of a mapped file are no views of it."""
    facts = write_store(dtype=dtype)
    for batches in (facts.open().iter_batches(batch_rows=16), facts.open().iter_shuffled(order=RowOrder())):
        batch = next(batches)
        np.testing.assert_array_equal(batch.activations["resid"], facts.words["resid"][batch.rows].astype(np.float32))
        batch.activations["resid"][:] = 0
        batches.close()


@pytest.mark.parametrize("as_words", [False, True])
def test_arrow_batches(counted: Any, store: Store, as_words: bool) -> None:
    reader = store.record_batches(["resid"], batch_rows=300, start=10, as_words=as_words)
    field = reader.schema.field("resid")
    assert field.type.equals(pa.fixed_shape_tensor(pa.uint16() if as_words else pa.float32(), [8]))
    assert field.metadata == ({b"logical_dtype": b"bfloat16"} if as_words else None)
    batches = [*reader]
    assert [len(batch) for batch in batches] == [300, 300, 300, 93]
    table = pa.Table.from_batches(batches)
    for name in ("row", "token_id", "document_id", "position", "held_out"):
        np.testing.assert_array_equal(table.column(name).to_numpy(), getattr(counted.tokens, name)[10:])
    got = np.concatenate([chunk.to_numpy_ndarray() for chunk in table.column("resid").chunks])
    expected = counted.words["resid"][10:]
    np.testing.assert_array_equal(got, expected if as_words else to_float32(expected, "bfloat16"))


def test_no_thread_is_left(store: Store) -> None:
    before = set(threading.enumerate())
    for batches in (store.iter_batches(batch_rows=10), store.iter_shuffled(order=RowOrder(), batch_rows=10)):
        next(batches)
        batches.close()
    assert set(threading.enumerate()) == before


def test_what_cannot_be_read_is_refused_at_once(store: Store) -> None:
    with pytest.raises(HookPointError, match="did you mean 'resid'"):
        store.iter_batches(["residd"])
    for wrong in ({"batch_rows": 0}, {"start": -1}, {"stop": 1004}, {"start": 9, "stop": 8}):
        with pytest.raises(SpecError, match="expected at least 1 row a batch"):
            store.iter_batches(**wrong)
