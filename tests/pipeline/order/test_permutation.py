"""The keyed permutation: a bijection, and one without the structure of weak round functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.order.permutation import KeyedPermutation


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 5000), key=st.integers(0, 2**128 - 1))
@example(size=1, key=0)
@example(size=2, key=0)
@example(size=4096, key=1)
@example(size=4097, key=1)
def test_it_is_a_bijection(size: int, key: int) -> None:
    images = KeyedPermutation(size, key).apply(np.arange(size))
    assert np.array_equal(np.sort(images), np.arange(size))


def test_every_size_up_to_300() -> None:
    for size in range(1, 301):
        assert np.array_equal(np.sort(KeyedPermutation(size, size).apply(np.arange(size))), np.arange(size))


def test_an_index_alone_gives_what_it_gives_among_others() -> None:
    permutation = KeyedPermutation(1000, 5)
    images = permutation.apply(np.arange(1000))
    assert [int(permutation.apply(index)) for index in (0, 17, 999)] == images[[0, 17, 999]].tolist()
    assert permutation.apply(np.arange(6).reshape(2, 3)).shape == (2, 3)
    assert permutation.apply([]).shape == (0,)


def test_large_sizes_stay_inside() -> None:
    size = 2**40 + 12345
    indices = np.random.default_rng(0).integers(0, size, 20_000)
    images = KeyedPermutation(size, 3).apply(indices)
    assert images.min() >= 0
    assert images.max() < size
    assert len(np.unique(images)) == len(np.unique(indices))


def test_the_map_is_pinned() -> None:
    """Resumed runs need the same order from every version."""
    assert KeyedPermutation(10, 42).apply(np.arange(10)).tolist() == [4, 8, 2, 6, 7, 1, 5, 0, 9, 3]
    assert int(KeyedPermutation(10**9, 7).apply(123_456_789)) == 654_034_838


def test_keys_give_different_orders() -> None:
    orders = {tuple(KeyedPermutation(64, key).apply(np.arange(64)).tolist()) for key in range(200)}
    assert len(orders) == 200


@pytest.mark.parametrize("size", [2**20, 2**21, 2**22, 3_000_000])
def test_low_bits_do_not_follow_the_input(size: int) -> None:
    """The pair (low bit of each half) of the output is independent of the same pair of the input.

    A round function without downward mixing makes one a fixed function of the other in every draw.
    """
    permutation = KeyedPermutation(size, key=size)
    indices = np.random.default_rng(1).choice(size, 20_000, replace=False)
    images = permutation.apply(indices)
    half = permutation.half_bits

    def pair(words: np.ndarray) -> np.ndarray:
        return (words & 1) | ((words >> half) & 1) << 1

    table = np.zeros((4, 4))
    np.add.at(table, (pair(indices), pair(images)), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    assert ((table - expected) ** 2 / expected).sum() < 27.9  # 9 degrees of freedom, p = 0.001


def test_low_bits_of_neighbours_are_uniform() -> None:
    """256 combinations of the low 4 bits of the images of n and n + 1: 255 degrees of freedom, p = 0.001."""
    images = KeyedPermutation(2**18, key=11).apply(np.arange(2**18)) & 15
    counts = np.bincount(images[:-1] * 16 + images[1:], minlength=256)
    assert chi_square(counts) < 330.5


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 1024])
def test_images_at_a_lag_are_uncorrelated(lag: int) -> None:
    images = KeyedPermutation(100_000, key=2).apply(np.arange(100_000)).astype(np.float64)
    assert abs(np.corrcoef(images[:-lag], images[lag:])[0, 1]) < 4 / np.sqrt(100_000)


def test_fixed_points_are_as_rare_as_chance() -> None:
    """Fixed points of a random permutation are Poisson with mean 1."""
    fixed = [int((KeyedPermutation(1000, key).apply(np.arange(1000)) == np.arange(1000)).sum()) for key in range(400)]
    assert abs(np.mean(fixed) - 1) < 0.2
    assert max(fixed) <= 7


def test_small_domains_are_near_uniform() -> None:
    """All 24 orders of four things over 720 keys: 23 degrees of freedom, p = 0.001."""
    orders = np.array([KeyedPermutation(4, key).apply(np.arange(4)) for key in range(720)])
    _, counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24
    assert chi_square(counts) < 49.7


@pytest.mark.parametrize("indices", [[-1], [10], [3, 12]])
def test_indices_outside_are_refused(indices: list[int]) -> None:
    with pytest.raises(IndexError, match="expected 0 to 9"):
        KeyedPermutation(10, 0).apply(indices)


def test_an_empty_permutation_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 to"):
        KeyedPermutation(0, 0)
