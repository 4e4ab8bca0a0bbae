"""Placing rows gives what numpy's indexing gives, in the fast way and the slow one, and never writes elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order.arranging import arrange
from pipeline.order.epoch import _stable_order
from pipeline.order.placing import ALIGNMENT, aligned_empty, place_chunks

DTYPES = ("<u2", "<f2", "<f4")


@settings(max_examples=60, deadline=None)
@given(
    width=st.sampled_from([1, 4, 8, 16, 17, 32, 48, 576]),
    dtype=st.sampled_from(DTYPES),
    num_rows=st.integers(0, 40),
    room=st.integers(0, 30),
    offset=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
    data_cut=st.integers(0, 40),
)
def test_rows_go_to_their_slots_and_nowhere_else(
    width: int, dtype: str, num_rows: int, room: int, offset: int, seed: int, data_cut: int
) -> None:
    random = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    # As in a shard: the source begins at any multiple of a word.
    raw = random.integers(0, 256, (num_rows * width + offset) * kind.itemsize, dtype=np.uint8)
    source = raw.view(kind)[offset:].reshape(num_rows, width)
    out = aligned_empty(num_rows + room, width, kind)
    out.view(np.uint8)[:] = 7
    expected = out.copy()
    slots = random.permutation(num_rows + room)[:num_rows].astype(np.int32)
    slots[random.random(num_rows) < 0.3] = -1
    for row, slot in enumerate(slots):
        if slot >= 0:
            expected[slot] = source[row]
    cut = data_cut % (num_rows + 1)
    whole = np.full((2, max(cut, num_rows - cut, 1)), -1, np.int32)
    whole[0, :cut], whole[1, : num_rows - cut] = slots[:cut], slots[cut:]
    place_chunks([source[:cut], source[cut:]], whole, out)
    assert out.tobytes() == expected.tobytes()


def test_a_slot_outside_the_buffer_is_refused() -> None:
    source, out = np.ones((2, 16), np.uint16), aligned_empty(3, 16, np.dtype("<u2"))
    out[:] = 0
    for slots in ([0, 3], [-2, 0]):
        with pytest.raises(IndexError, match="in a buffer of 3 rows"):
            place_chunks([source], np.array([slots], np.int32), out)
    assert not out.any()


def test_a_buffer_begins_where_the_fast_way_wants_it() -> None:
    for width in (3, 16, 576):
        assert aligned_empty(5, width, np.dtype("<u2")).__array_interface__["data"][0] % ALIGNMENT == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 40)), max_size=200))
def test_sorting_packed_words_is_a_stable_argsort(words: list[int]) -> None:
    """Small numbers and repeats have equal upper bits."""
    array = np.array(words, dtype=np.uint64)
    np.testing.assert_array_equal(_stable_order(array), np.argsort(array, kind="stable"))


def test_sorting_packed_random_words() -> None:
    array = np.random.default_rng(0).integers(0, 2**64, 70_000, dtype=np.uint64)
    np.testing.assert_array_equal(_stable_order(array), np.argsort(array, kind="stable"))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_arranging_is_what_numpy_would_do(num_chunks: int, chunk_rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    chunks = random.permutation(1000)[:num_chunks]
    mask = (random.random((num_chunks, chunk_rows)) < 0.6).astype(np.uint8)
    places, offsets = np.nonzero(mask)
    order = random.permutation(len(places))
    rows, of_chunk, slots = arrange(mask, chunks, order)
    np.testing.assert_array_equal(rows, (chunks[places] * chunk_rows + offsets)[order])
    np.testing.assert_array_equal(of_chunk, places[order])
    expected = np.full(mask.shape, -1)
    expected[places[order], offsets[order]] = np.arange(len(order))
    np.testing.assert_array_equal(slots, expected)
    with pytest.raises(ValueError, match="the mask marks others"):
        arrange(mask, chunks, np.append(order, 0))
