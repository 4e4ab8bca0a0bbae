"""8-bit words with a scale for each row: as near as the type allows, and never a believable number for what is none."""

from __future__ import annotations

import math
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.store.reader import Store
from pipeline.store.rounding import dequantise, quantise, relative_error, rounding_error, row_scales
from schemas.collect import Storage

Dtype = Literal["int8", "float8_e4m3"]
DTYPES: list[Dtype] = ["int8", "float8_e4m3"]
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)


def through(values: np.ndarray, dtype: Dtype) -> np.ndarray:
    scales = row_scales(values, dtype)
    return dequantise(quantise(values, scales, dtype), scales, dtype)


@settings(deadline=None)
@given(values=hnp.arrays(np.float32, ROWS, elements=FINITE), dtype=st.sampled_from(DTYPES))
def test_no_value_is_further_off_than_half_a_step(values: np.ndarray, dtype: Dtype) -> None:
    stored = through(values, dtype)
    assert np.isfinite(stored).all()
    exact, scales = values.astype(np.float64), row_scales(values, dtype).astype(np.float64)[:, None]
    if dtype == "int8":
        step = scales
    else:  # 3 bits of mantissa, and a fixed step of 2^-9 below 2^-6
        magnitude = np.abs(exact) / np.where(scales > 0, scales, 1)
        step = scales * np.exp2(np.floor(np.log2(np.maximum(magnitude, 2.0**-6))) - 3)
    # What float32 itself loses: a few ulps of the values, and all that is smaller than its least number.
    slack = 1e-6 * np.abs(exact) + 448 * 2.0**-149
    assert (np.abs(stored - exact) <= step / 2 + slack).all()


@settings(deadline=None)
@given(
    values=hnp.arrays(np.float32, ROWS, elements=st.floats(width=32)),
    dtype=st.sampled_from(DTYPES),
)
def test_a_row_that_is_not_finite_reads_back_as_none_of_it(values: np.ndarray, dtype: Dtype) -> None:
    stored = through(values, dtype)
    is_nan = np.isnan(values).any(axis=1)
    is_inf = np.isinf(values).any(axis=1) & ~is_nan
    assert np.isnan(stored[is_nan]).all()
    assert np.isinf(stored[is_inf]).all()
    finite = ~(is_nan | is_inf)
    np.testing.assert_array_equal(stored[finite], through(values[finite], dtype))


def test_every_float8_word_is_what_torch_and_ml_dtypes_say() -> None:
    words = np.arange(256, dtype=np.uint8).reshape(16, 16)
    scales = np.ones(16, dtype=np.float32)
    values = dequantise(words, scales, "float8_e4m3")
    np.testing.assert_array_equal(values, torch.from_numpy(words).view(torch.float8_e4m3fn).float().numpy())
    np.testing.assert_array_equal(values, words.view(ml_dtypes.float8_e4m3fn).astype(np.float32))


@settings(deadline=None)
@given(values=hnp.arrays(np.float32, (4, 5), elements=st.floats(-448, 448, width=32)))
def test_float8_rounds_as_torch_does(values: np.ndarray) -> None:
    words = quantise(values, np.ones(4, dtype=np.float32), "float8_e4m3")
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(words, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_in_blocks_are_rows_one_by_one(dtype: Dtype) -> None:
    values = np.random.default_rng(0).standard_normal((2500, 3)).astype(np.float32)
    values[7] = 0
    one_by_one = np.concatenate([through(values[place : place + 1], dtype) for place in range(len(values))])
    np.testing.assert_array_equal(through(values, dtype), one_by_one)
    rounding = rounding_error(values, one_by_one)
    difference = one_by_one.astype(np.float64) - values
    expected = np.linalg.norm(difference) / np.linalg.norm(values.astype(np.float64))
    assert relative_error(rounding) == pytest.approx(expected, rel=1e-12)


def test_the_error_of_no_finite_row_is_nothing() -> None:
    values = np.array([[math.nan, 1.0], [math.inf, 2.0]], dtype=np.float32)
    assert relative_error(rounding_error(values, through(values, "int8"))) == 0


@pytest.mark.parametrize("layout", ["zarr", "arrow"])
def test_a_store_counts_what_is_not_finite_in_what_was_given(sample: Any, local_url: str, layout: str) -> None:
    one = sample(layout=layout, dtype="int8")
    hook = next(iter(one.arrays))
    one.arrays[hook][3, 0], one.arrays[hook][40, 1], one.arrays[hook][50, 2] = math.nan, math.inf, -math.inf
    one.write_all(local_url)
    store = Store.open(local_url)
    statistics = store.statistics[hook]
    assert (statistics.count, statistics.num_nan, statistics.num_inf) == (72, 1, 2)
    assert not np.isfinite(store.gather_values(hook, np.array([40, 3, 50]))).any()
    assert np.isfinite(store.read_values(hook, 4, 40)).all()
    finite = np.isfinite(one.arrays[hook]).all(axis=1)
    values = store.read_values(hook, 0, 75)[finite].astype(np.float64)
    np.testing.assert_allclose(statistics.mean, values.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "int8"}, "add lossy: true"),
        ({"dtype": "float8_e4m3"}, "add lossy: true"),
        ({"dtype": "bfloat16", "lossy": True}, "goes with float8_e4m3, int8 only"),
        ({"layout": "arrow", "codec": "zstd"}, "codec none only"),
        ({"codec": "bf16", "dtype": "float16"}, "dtype bfloat16 only"),
        ({"codec": "bf16", "layout": "arrow"}, "codec none only"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Storage(**fields)
