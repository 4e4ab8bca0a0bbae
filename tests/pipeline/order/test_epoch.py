"""One epoch as pure arrays: every row once, whatever the windows, batches, ranks and restarts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order.eligible import EligibleRows
from pipeline.order.epoch import EpochOrder
from pipeline.order.keys import OrderKey
from pipeline.order.quality import shuffle_quality
from schemas.train import RowFilter, RowOrder


def key_of(
    *, seed: int = 0, window_chunks: int = 4, store: str = "0" * 64, split: str = "train", mode: str = "shuffled"
) -> OrderKey:
    return OrderKey(store, RowFilter(), split, RowOrder(seed=seed, window_chunks=window_chunks, mode=mode))


def all_rows(num_rows: int, chunk_rows: int) -> EligibleRows:
    return EligibleRows.of_mask(np.ones(num_rows, dtype=np.bool_), chunk_rows=chunk_rows)


@dataclass(frozen=True)
class Case:
    mask: np.ndarray
    order: EpochOrder


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any size, filter, chunking, window and batch size, some of them degenerate."""
    num_rows = draw(st.integers(1, 1500))
    chunk_rows = draw(st.integers(1, 100))
    density = draw(st.sampled_from([0.02, 0.5, 1.0]))
    seed = draw(st.integers(0, 2**32))
    mask = np.random.default_rng(seed).random(num_rows) < density
    mask[draw(st.integers(0, num_rows - 1))] = True
    mode = draw(st.sampled_from(["shuffled", "sequential"]))
    key = key_of(seed=seed, window_chunks=draw(st.integers(1, 20)), mode=mode)
    eligible = EligibleRows.of_mask(mask, chunk_rows=chunk_rows)
    order = EpochOrder(eligible, key, draw(st.integers(0, 3)), batch_rows=draw(st.integers(1, 300)))
    return Case(mask, order)


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_every_eligible_row_exactly_once(case: Case) -> None:
    seen = np.concatenate([case.order.batch(b) for b in range(case.order.num_batches)])
    assert np.array_equal(np.sort(seen), np.flatnonzero(case.mask))


@settings(max_examples=60, deadline=None)
@given(case=cases(), world_size=st.integers(1, 9))
def test_ranks_share_a_batch_in_its_order(case: Case, world_size: int) -> None:
    for b in range(min(case.order.num_batches, 12)):
        batch = case.order.batch(b)
        shares = [case.order.share(b, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert np.array_equal(np.sort(np.concatenate(shares)), np.sort(batch))
        for share in shares:
            assert np.array_equal(batch[np.isin(batch, share)], share)


attempts = st.tuples(st.integers(1, 5), st.floats(0, 1), st.integers(1, 7))


@settings(max_examples=40, deadline=None)
@given(case=cases(), kills=st.lists(attempts, max_size=4), last_world_size=st.integers(1, 5))
def test_exactly_once_across_kills_and_changes_of_world_size(
    case: Case, kills: list[tuple[int, float, int]], last_world_size: int
) -> None:
    """Each attempt has its number of ranks, dies after a share of the batches, and keeps its last checkpoint."""
    trained: list[np.ndarray] = []
    for world_size, share, checkpoint_every in [*kills, (last_world_size, 1.0, 1)]:
        kept = len(trained)
        for batch in range(len(trained), round(share * case.order.num_batches)):
            trained += [
                np.concatenate([case.order.share(batch, rank=r, world_size=world_size) for r in range(world_size)])
            ]
            kept = batch + 1 if (batch + 1) % checkpoint_every == 0 else kept
        del trained[kept:]
    assert len(trained) == case.order.num_batches
    assert np.array_equal(np.sort(np.concatenate(trained)), np.flatnonzero(case.mask))


@settings(max_examples=40, deadline=None)
@given(case=cases(), world_size=st.integers(2, 5))
def test_no_two_ranks_read_one_chunk_of_a_window(case: Case, world_size: int) -> None:
    for index in range(case.order.num_windows):
        window = case.order.window(index)
        assert len(np.unique(window.chunks)) == len(window.chunks)
        owners = window.places % world_size
        for chunk_place in np.unique(window.places):
            assert len(np.unique(owners[window.places == chunk_place])) == 1


@settings(max_examples=40, deadline=None)
@given(num_rows=st.integers(1, 2000), chunk_rows=st.integers(1, 64), window_chunks=st.integers(1, 12))
def test_windows_are_of_nearly_equal_length(num_rows: int, chunk_rows: int, window_chunks: int) -> None:
    order = EpochOrder(all_rows(num_rows, chunk_rows), key_of(window_chunks=window_chunks), 0, batch_rows=7)
    lengths = [len(order.window(index).chunks) for index in range(order.num_windows)]
    assert max(lengths) <= window_chunks
    assert max(lengths) - min(lengths) <= 1


def test_batches_of_any_size_cut_one_sequence() -> None:
    eligible, key = all_rows(1000, 16), key_of()
    sequences = []
    for batch_rows in (1000, 64, 33):
        order = EpochOrder(eligible, key, 0, batch_rows=batch_rows)
        sequences.append(np.concatenate([order.batch(b) for b in range(order.num_batches)]))
    assert np.array_equal(sequences[0], sequences[1])
    assert np.array_equal(sequences[0], sequences[2])


def test_the_last_batch_is_short_and_nothing_lies_behind_it() -> None:
    order = EpochOrder(all_rows(100, 8), key_of(), 0, batch_rows=30)
    assert [len(order.batch(b)) for b in range(order.num_batches)] == [30, 30, 30, 10]
    with pytest.raises(IndexError, match="epoch of 4 batches"):
        order.batch(4)


@pytest.mark.parametrize(
    "other",
    [key_of(seed=1), key_of(window_chunks=5), key_of(store="1" * 64), key_of(split="all"), key_of(mode="sequential")],
    ids=["seed", "window", "store", "split", "mode"],
)
def test_every_fact_of_the_key_changes_the_order(other: OrderKey) -> None:
    eligible = all_rows(400, 8)
    ours = EpochOrder(eligible, key_of(), 0, batch_rows=400).batch(0)
    theirs = EpochOrder(eligible, other, 0, batch_rows=400).batch(0)
    assert not np.array_equal(ours, theirs)


def test_epochs_differ_and_repeat() -> None:
    eligible = all_rows(400, 8)
    first, again, second = (EpochOrder(eligible, key_of(), epoch, batch_rows=400).batch(0) for epoch in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_the_order_is_pinned() -> None:
    """Resumed runs need the same order from every version of this package and of numpy."""
    order = EpochOrder(all_rows(20, 4), key_of(window_chunks=3), 0, batch_rows=20)
    assert order.batch(0).tolist() == [10, 5, 8, 7, 9, 6, 11, 4, 3, 15, 1, 2, 19, 16, 13, 14, 12, 18, 0, 17]


def test_neighbours_in_the_sequence_are_uncorrelated() -> None:
    """Within a window the rows are uniformly mixed: no correlation at any small lag."""
    order = EpochOrder(all_rows(65_536, 256), key_of(window_chunks=256), 0, batch_rows=65_536)
    sequence = order.batch(0).astype(np.float64)
    for lag in (1, 2, 7, 256):
        assert abs(np.corrcoef(sequence[:-lag], sequence[lag:])[0, 1]) < 4 / 256


def test_wider_windows_mix_contexts_better() -> None:
    """With contexts and chunks of 128 rows, pairs exceed chance by (rows of all) / (rows of a window)."""
    num_rows, context = 2**16, 128
    eligible = all_rows(num_rows, context)
    ideal = (context - 1) / (num_rows - 1)
    for window_chunks, expected in ((16, 32.0), (64, 8.0), (512, 1.0)):
        order = EpochOrder(eligible, key_of(window_chunks=window_chunks), 0, batch_rows=512)
        measured = [shuffle_quality(order.batch(b) // context, ideal).excess for b in range(order.num_batches)]
        assert np.mean(measured) == pytest.approx(expected, rel=0.03)


def test_quality_of_known_batches() -> None:
    assert shuffle_quality(np.array([1, 1, 2, 2]), 0.1).rate == pytest.approx(1 / 3)
    assert shuffle_quality(np.array([1, 2, 3]), 0.1).excess == 0
    assert shuffle_quality(np.array([5, 5, 5]), 0.0).excess == float("inf")
    assert shuffle_quality(np.array([1]), 0.0).excess == 1


def test_a_set_of_rows_takes_a_bit_a_row() -> None:
    mask = np.random.default_rng(0).random(1003) < 0.5
    eligible = EligibleRows.of_mask(mask, chunk_rows=100)
    assert eligible._bits.nbytes == 11 * 13
    assert eligible.num_rows == mask.sum()
    assert np.array_equal(np.concatenate([eligible.rows_of(chunk) for chunk in range(11)]), np.flatnonzero(mask))
