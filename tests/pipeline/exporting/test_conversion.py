"""Widening and narrowing of every 16-bit pattern, and the rounding of what was never 16 bits."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.exporting.conversion import is_exact, narrowed, widened
from schemas.errors import SpecError
from schemas.fields import Dtype

EVERY = np.arange(2**16, dtype=np.uint16).reshape(-1, 64)


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", np.uint16), ("float16", np.float16)])
def test_every_pattern_comes_back(dtype: Dtype, stored: type) -> None:
    values = widened(EVERY.view(stored), dtype)
    np.testing.assert_array_equal(narrowed(values, dtype).view(np.uint16), EVERY)
    # The numbers are those that another library reads from the same bits.
    other = EVERY.view(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
    finite = np.isfinite(values)
    np.testing.assert_array_equal(values[finite], other[finite].astype(np.float32))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(np.isnan(values), np.isnan(other))


@given(arrays.arrays(np.float32, (3, 4), elements=st.floats(-60000, 60000, width=32)))
def test_rounding_is_to_the_nearest(values: np.ndarray) -> None:
    np.testing.assert_array_equal(narrowed(values, "bfloat16"), values.astype(ml_dtypes.bfloat16).view(np.uint16))
    np.testing.assert_array_equal(narrowed(values, "float16"), values.astype(np.float16))


@pytest.mark.parametrize(("dtype", "number"), [("float16", 65520.0), ("bfloat16", 3.4e38)])
def test_what_would_become_infinite_is_refused(dtype: Dtype, number: float) -> None:
    values = np.zeros((5, 3), dtype=np.float32)
    values[2, 1] = -number
    with pytest.raises(SpecError, match=r"row 2 of the unit, channel 1"):
        narrowed(values, dtype)
    values[2, 1] = -math.inf
    assert np.isinf(widened(narrowed(values, dtype), dtype)[2, 1])


def test_only_float32_holds_everything() -> None:
    assert [is_exact("bfloat16", dtype) for dtype in ("bfloat16", "float16", "float32", "int8")] == [
        True, False, True, False,
    ]  # fmt: skip
