"""Merged statistics are those of one pass over everything."""

from __future__ import annotations

import itertools
import math
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.rows import TokenRows
from pipeline.store.shard import encode_shard
from pipeline.store.statistics import (
    QUANTILE_ERROR,
    mean_norm,
    measure,
    median_norm,
    merge,
    merge_all,
    nothing,
    quantile_norm,
    rms_norm,
    standard_deviation,
)
from pipeline.store.words import to_words
from schemas.store import HookStatistics

floats = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)


def close(a: HookStatistics, b: HookStatistics) -> None:
    """Relative 1e-9; the floor for deviations is what rounding of the squares themselves leaves."""
    assert (a.count, a.num_nan, a.num_inf, a.norms) == (b.count, b.num_nan, b.num_inf, b.norms)
    floor = 1e-12 * (a.square_norm_sum + 1e-300)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-9, atol=math.sqrt(floor) * 1e-6)
    np.testing.assert_allclose(a.m2, b.m2, rtol=1e-9, atol=floor)
    np.testing.assert_allclose([a.norm_sum, a.square_norm_sum], [b.norm_sum, b.square_norm_sum], rtol=1e-9)


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(floats, min_size=3, max_size=3), max_size=60), cuts=st.lists(st.integers(0, 60), max_size=5)
)
def test_parts_merge_to_the_whole(rows: list[list[float]], cuts: list[int]) -> None:
    values = np.array(rows, dtype=np.float32).reshape(-1, 3)
    places = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    parts = [measure(values[a:b], "float32") for a, b in itertools.pairwise(places)]
    close(merge_all(parts, width=3), measure(values, "float32"))


def test_against_numpy_over_many_blocks() -> None:
    values = (np.random.default_rng(0).standard_normal((90_000, 4)) * [1, 2, 3, 4] + 5).astype(np.float32)
    statistics = measure(values, "float32")
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    np.testing.assert_allclose(statistics.mean, values.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(standard_deviation(statistics), values.astype(np.float64).std(axis=0), rtol=1e-12)
    assert mean_norm(statistics) == pytest.approx(norms.mean(), rel=1e-12)
    assert rms_norm(statistics) == pytest.approx(math.sqrt((norms**2).mean()), rel=1e-12)
    assert median_norm(statistics) == quantile_norm(statistics, 0.5)
    assert statistics.norms.counts == {
        place: int(count)
        for place, count in zip(*np.unique(np.floor(64 * np.log2(norms)), return_counts=True), strict=True)
    }


@pytest.mark.parametrize("mean", [1e4, -3e7])
def test_a_large_mean_costs_no_digits(mean: float) -> None:
    """The textbook formula E[x^2] - E[x]^2 would lose all of them here."""
    values = (np.random.default_rng(0).standard_normal((70_000, 3)) * 4 + mean).astype(np.float32)
    parts = [measure(values[start : start + 7000], "float32") for start in range(0, len(values), 7000)]
    expected = values.astype(np.float64).std(axis=0)
    for statistics in (measure(values, "float32"), merge_all(parts, width=3)):
        np.testing.assert_allclose(standard_deviation(statistics), expected, rtol=1e-9)


@settings(deadline=None)
@given(
    norms=st.lists(st.one_of(st.just(0.0), st.floats(2.0**-60, 2.0**60, width=32)), min_size=1, max_size=80),
    share=st.floats(0, 1),
)
def test_quantiles_are_as_right_as_they_say(norms: list[float], share: float) -> None:
    values = np.array(norms, dtype=np.float32)[:, None]
    expected = float(np.quantile(values.astype(np.float64)[:, 0], share, method="inverted_cdf"))
    assert quantile_norm(measure(values, "float32"), share) == pytest.approx(expected, rel=QUANTILE_ERROR + 1e-12)
    assert QUANTILE_ERROR < 0.0055


def test_a_quantile_is_of_a_share() -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        quantile_norm(nothing(1), 1.5)


def token_rows(num_rows: int, first: int = 0) -> TokenRows:
    row = np.arange(first, first + num_rows)
    return TokenRows(row, row * 7 % 50, row // 20, row % 10, row < 0)


@settings(deadline=None)
@given(
    norms=st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan, math.inf]), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    wanted=st.integers(0, 12),
    order=st.randoms(use_true_random=False),
)
def test_outliers_are_the_rows_of_greatest_norm_in_whatever_order_parts_merge(
    norms: list[float], cuts: list[int], wanted: int, order: random.Random
) -> None:
    values = np.array(norms, dtype=np.float32)[:, None]
    tokens = token_rows(len(values), first=100)
    places = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    parts = [
        measure(values[a:b], "float32", tokens=tokens.slice(a, b), outlier_tokens=wanted)
        for a, b in itertools.pairwise(places)
    ]
    order.shuffle(parts)
    finite = sorted((-norm, 100 + place) for place, norm in enumerate(norms) if math.isfinite(norm))
    expected = [(row, row * 7 % 50, -negative) for negative, row in finite[:wanted]]
    merged = merge_all(parts, width=1)
    assert [(one.row, one.token_id, one.norm) for one in merged.outliers] == expected
    assert merged.outliers == measure(values, "float32", tokens=tokens, outlier_tokens=wanted).outliers


@settings(deadline=None)
@given(rows=st.lists(st.integers(0, 2), min_size=1, max_size=40), order=st.randoms(use_true_random=False))
def test_parts_merge_in_any_order(rows: list[int], order: random.Random) -> None:
    kinds = np.array([[1.0, 2.0], [math.nan, math.inf], [-math.inf, 1e4]], dtype=np.float32)
    parts = [measure(kinds[row : row + 1], "float32") for row in rows]
    whole = merge_all(parts, width=2)
    order.shuffle(parts)
    close(merge_all(parts, width=2), whole)
    close(whole, measure(kinds[rows], "float32"))


def test_rows_that_are_not_finite_are_counted_apart() -> None:
    values = np.ones((4, 2), dtype=np.float32)
    values[1] = [math.nan, math.inf]
    values[2, 0] = -math.inf
    values[3] = 0
    statistics = measure(values, "float32")
    assert (statistics.count, statistics.num_nan, statistics.num_inf) == (2, 1, 1)
    assert statistics.mean == [0.5, 0.5]
    assert statistics.norms.counts == {-10000: 1, 32: 1}
    only = measure(values[1:3], "float32")
    assert (only.count, only.num_nan, only.num_inf) == (0, 1, 1)
    close(merge(measure(values[:1], "float32"), merge(only, measure(values[3:], "float32"))), statistics)


def test_of_nothing_everything_is_nan() -> None:
    empty = nothing(2)
    assert all(math.isnan(value) for value in (mean_norm(empty), rms_norm(empty), median_norm(empty)))
    assert np.isnan(standard_deviation(empty)).all()
    assert merge(empty, empty) == empty


@given(rows=st.integers(0, 5000), width=st.integers(1, 900), num_nan=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_threads_measure_the_same_bits(rows: int, width: int, num_nan: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, width), dtype=np.float32)
    values[rng.integers(0, max(rows, 1), num_nan if rows else 0)] = np.nan
    words = to_words(values, "bfloat16")
    with ThreadPoolExecutor(3) as pool:
        assert measure(words, "bfloat16", each=pool.map) == measure(words, "bfloat16")
        if rows:
            shared = encode_shard(words, 64, 64 * 80, "bf16", pool.map)
            assert shared == encode_shard(words, 64, 64 * 80, "bf16")
