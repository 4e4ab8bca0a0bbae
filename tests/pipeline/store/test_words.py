"""Words against torch's own rounding, and back."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.store.words import stored_dtype, to_float32, to_words

Dtype = Literal["bfloat16", "float16", "float32"]
TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@settings(deadline=None)
@given(bits=hnp.arrays(np.uint32, st.integers(1, 64)), dtype=st.sampled_from(["bfloat16", "float16", "float32"]))
def test_rounding_is_torchs(bits: np.ndarray, dtype: Dtype) -> None:
    values = bits.view(np.float32)
    expected = torch.from_numpy(values.copy()).to(TORCH[dtype]).float().numpy()
    words = to_words(values, dtype)
    assert words.dtype == stored_dtype(dtype)
    np.testing.assert_array_equal(to_float32(words, dtype), expected)


@settings(deadline=None)
@given(words=hnp.arrays(np.uint16, st.integers(1, 64)))
def test_every_bfloat16_number_survives_the_way_through_float32(words: np.ndarray) -> None:
    values = to_float32(words, "bfloat16")
    again = to_words(values, "bfloat16")
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(again[numbers], words[numbers])
    assert np.isnan(to_float32(again, "bfloat16")[~numbers]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shapes_and_strides_are_kept(dtype: Dtype) -> None:
    values = np.arange(24, dtype=np.float32).reshape(6, 4)
    np.testing.assert_array_equal(to_float32(to_words(values[:, ::2], dtype), dtype), values[:, ::2])
