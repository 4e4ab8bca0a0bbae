"""Merged statistics are those of one pass over everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.statistics import (
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
    values = (np.random.default_rng(0).standard_normal((5000, 4)) * [1, 2, 3, 4] + 5).astype(np.float32)
    statistics = measure(values, "float32")
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    np.testing.assert_allclose(statistics.mean, values.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(standard_deviation(statistics), values.astype(np.float64).std(axis=0), rtol=1e-12)
    assert mean_norm(statistics) == pytest.approx(norms.mean(), rel=1e-12)
    assert rms_norm(statistics) == pytest.approx(math.sqrt((norms**2).mean()), rel=1e-12)
    assert median_norm(statistics) == pytest.approx(np.median(norms), rel=0.022)
    assert quantile_norm(statistics, 0.99) == pytest.approx(np.quantile(norms, 0.99), rel=0.044)
    assert statistics.norms.counts == {
        place: int(count)
        for place, count in zip(*np.unique(np.floor(16 * np.log2(norms)), return_counts=True), strict=True)
    }


def test_rows_that_are_not_finite_are_counted_apart() -> None:
    values = np.ones((4, 2), dtype=np.float32)
    values[1] = [math.nan, math.inf]
    values[2, 0] = -math.inf
    values[3] = 0
    statistics = measure(values, "float32")
    assert (statistics.count, statistics.num_nan, statistics.num_inf) == (2, 1, 1)
    assert statistics.mean == [0.5, 0.5]
    assert statistics.norms.counts == {-10000: 1, 8: 1}
    only = measure(values[1:3], "float32")
    assert (only.count, only.num_nan, only.num_inf) == (0, 1, 1)
    close(merge(measure(values[:1], "float32"), merge(only, measure(values[3:], "float32"))), statistics)


def test_of_nothing_everything_is_nan() -> None:
    empty = nothing(2)
    assert all(math.isnan(value) for value in (mean_norm(empty), rms_norm(empty), median_norm(empty)))
    assert np.isnan(standard_deviation(empty)).all()
    assert merge(empty, empty) == empty
