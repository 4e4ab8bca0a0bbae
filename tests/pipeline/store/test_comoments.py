"""Co-moments of units add up to the covariance of one pass over everything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.comoments import comoments, comoments_key, merged, packed, unpacked
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.statistics import measure
from pipeline.store.words import to_float32, to_words
from schemas.errors import CorruptionError, SpecError
from schemas.store import HookStatistics

floats = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
HOOK = "blocks.0.hook_mlp_in"


def part(words: np.ndarray, dtype: Any = "float32") -> tuple[HookStatistics, np.ndarray]:
    statistics = measure(words, dtype)
    return statistics, comoments(words, dtype, statistics)


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(floats, min_size=3, max_size=3), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_parts_merge_to_the_whole_in_any_order(rows: list[list[float]], cuts: list[int], order: Any) -> None:
    values = np.array(rows, dtype=np.float32).reshape(-1, 3)
    places = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    parts = [part(values[a:b]) for a, b in itertools.pairwise(places)]
    order.shuffle(parts)
    count, total = merged(parts, width=3)
    assert count == len(values)
    deviations = values.astype(np.float64) - (values.mean(axis=0, dtype=np.float64) if len(values) else 0)
    floor = 1e-12 * float((values.astype(np.float64) ** 2).sum()) + 1e-300
    np.testing.assert_allclose(total, deviations.T @ deviations, rtol=1e-9, atol=floor)


def test_against_numpy_with_a_mean_a_million_deviations_away() -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((6000, 5)) @ rng.standard_normal((5, 5)) + 3e6).astype(np.float32)
    count, total = merged([part(values[start : start + 1100]) for start in range(0, 6000, 1100)], width=5)
    np.testing.assert_allclose(total / count, np.cov(values.astype(np.float64).T, bias=True), rtol=1e-8)


def test_the_diagonal_is_that_of_the_squared_deviations() -> None:
    words = to_words(np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32), "bfloat16")
    statistics, total = part(words, "bfloat16")
    np.testing.assert_allclose(np.diag(total), statistics.m2, rtol=1e-12)


def test_rows_that_are_not_finite_are_left_out() -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3) ** 2
    spoilt = np.insert(values, 2, [math.nan, 1, 2], axis=0)
    np.testing.assert_array_equal(part(spoilt)[1], part(values)[1])
    nothing = np.full((2, 3), math.inf, dtype=np.float32)
    assert merged([part(nothing), part(values)], width=3)[0] == 4


def test_a_triangle_is_the_whole() -> None:
    root = np.random.default_rng(0).standard_normal((7, 7))
    symmetric = root + root.T
    assert packed(symmetric).shape == (28,)
    np.testing.assert_array_equal(unpacked(packed(symmetric), 7), symmetric)


def expected(sample: Any, hook: str = HOOK) -> np.ndarray:
    return np.cov(to_float32(sample.arrays[hook], sample.record.dtype).astype(np.float64).T, bias=True)


@pytest.fixture
def covaried(sample: Callable[..., Any]) -> Any:
    """Three units, the last of them short."""
    return sample(statistics={"covariance": True, "outlier_tokens": 3})


def test_the_store_has_the_covariance_of_a_single_pass(covaried: Any, local_url: str) -> None:
    manifest = covaried.write_all(local_url)
    store = Store.open(local_url)
    np.testing.assert_allclose(store.covariance(HOOK), expected(covaried), rtol=1e-10, atol=1e-12)
    assert store.verify(deep=True) == []
    assert covaried.open(local_url).finish() == manifest
    plain = np.load(Path(local_url, manifest.covariances[HOOK].key), allow_pickle=False)
    np.testing.assert_array_equal(plain, store.covariance(HOOK))


def test_a_partial_store_has_that_of_its_committed_rows(covaried: Any, local_url: str) -> None:
    writer = covaried.open(local_url)
    covaried.write(writer, [0, 2])
    rows = np.r_[0:32, 64:75]
    values = to_float32(covaried.arrays[HOOK][rows], "bfloat16").astype(np.float64)
    store = Store.open(local_url, allow_partial=True)
    np.testing.assert_allclose(store.covariance(HOOK), np.cov(values.T, bias=True), rtol=1e-10, atol=1e-12)


def test_a_store_without_covariance_says_so(sample: Callable[..., Any], local_url: str) -> None:
    sample().write_all(local_url)
    with pytest.raises(SpecError, match=r"statistics\.covariance"):
        Store.open(local_url).covariance(HOOK)


def test_a_flipped_bit_is_found(covaried: Any, local_url: str) -> None:
    manifest = covaried.write_all(local_url)
    for key in (manifest.covariances[HOOK].key, comoments_key(HOOK, 1)):
        path = Path(local_url, key)
        data = bytearray(path.read_bytes())
        data[-3] ^= 4
        path.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"covariances/.*CRC-32C"):
        Store.open(local_url).covariance(HOOK)
    found = {problem.key for problem in Store.open(local_url).verify(deep=True)}
    assert found == {manifest.covariances[HOOK].key, comoments_key(HOOK, 1)}


@pytest.mark.parametrize("left", ["rounded", "damaged", "other"])
def test_what_a_killed_attempt_left_is_taken_over_or_replaced(covaried: Any, local_url: str, left: str) -> None:
    covaried.write_all(local_url)
    sound = Path(local_url, comoments_key(HOOK, 1)).read_bytes()
    fresh = f"{local_url}-2"
    data = bytearray(sound)
    if left == "rounded":
        data[-8] ^= 1  # the lowest bit of a float64
    elif left == "damaged":
        del data[100:]
    else:
        data[-1] ^= 64
    Objects(fresh).create(comoments_key(HOOK, 1), bytes(data))
    covaried.write_all(fresh)
    kept = Path(fresh, comoments_key(HOOK, 1)).read_bytes()
    assert kept == (data if left == "rounded" else sound)
    np.testing.assert_allclose(Store.open(fresh).covariance(HOOK), expected(covaried), rtol=1e-10, atol=1e-12)
    assert Store.open(fresh).verify(deep=True) == []


def test_the_manifest_names_outliers_and_units_that_are_not_finite(sample: Callable[..., Any], local_url: str) -> None:
    spoilt = sample(dtype="float32", statistics={"outlier_tokens": 3})
    words = spoilt.arrays[HOOK]
    words[[40, 41]], words[70], words[[5, 74]] = math.nan, math.inf, 100
    manifest = spoilt.write_all(local_url)
    store = Store.open(local_url)
    found = {unit: (rows.num_nan, rows.num_inf) for unit, rows in store.non_finite[HOOK].items()}
    assert found == {1: (2, 0), 2: (0, 1)}
    assert [*store.non_finite] == [HOOK]
    partial = Store(store.objects, store.record, store.passes, None, store.num_rows)
    assert partial.non_finite == store.non_finite
    outliers = store.statistics[HOOK].outliers
    assert [one.row for one in outliers][:2] == [5, 74]
    assert [one.token_id for one in outliers] == spoilt.tokens.token_id[[one.row for one in outliers]].tolist()
    assert outliers == measure(words, "float32", tokens=spoilt.tokens, outlier_tokens=3).outliers
    assert manifest.statistics["module:model.layers.0:out"].max_outliers == 3
