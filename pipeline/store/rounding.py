"""Lossy words: each row divided by a scale of its own and rounded to 8 bits.

    scale = greatest magnitude in the row / greatest magnitude of the type (127, 448)
    word  = value / scale, to the nearest word, ties to even;   value' = word * scale in float32

``int8`` is symmetric: -127 to 127. ``float8_e4m3`` is E4M3 without infinities of Micikevicius et al., "FP8 formats for
deep learning" (arXiv 2209.05433), which ml_dtypes and torch call float8_e4m3fn.

A row with a NaN has the scale NaN, one with an infinity and no NaN the scale infinity, and every word of such a row is
the number 1: it reads back as not finite in every channel, never as numbers that could be believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import numpy.typing as npt

from pipeline.store.words import Floats, Words, stored_dtype
from schemas.fields import Dtype
from schemas.store import Rounding

Scales = npt.NDArray[np.float32]
"""[T]."""

_FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
_FLOAT8_VALUES: Floats = np.arange(256, dtype=np.uint8).view(_FLOAT8).astype(np.float32)
_GREATEST: dict[Dtype, float] = {"int8": 127.0, "float8_e4m3": 448.0}
_ONE: dict[Dtype, int] = {"int8": 1, "float8_e4m3": 0x38}
_BLOCK_ROWS = 1024


def row_scales(values: Floats, dtype: Dtype) -> Scales:
    """[T] of values [T, D]; not finite where the row is not, 0 of a row of zeros."""
    scales = np.empty(len(values), dtype=np.float32)
    greatest = np.float32(_GREATEST[dtype])
    for rows in _blocks(len(values)):
        scales[rows] = np.abs(values[rows]).max(axis=1, initial=0) / greatest
    # Rounded up, a scale near the end of float32 would make a finite row read back as infinite.
    with np.errstate(over="ignore"):
        beyond = np.isinf(scales * greatest) & np.isfinite(scales)
    scales[beyond] = np.nextafter(scales[beyond], np.float32(0))
    return scales


def quantise(values: Floats, scales: Scales, dtype: Dtype) -> Words:
    """Words [T, D] of values [T, D] and the scales [T] of their rows, not finite exactly where the rows are not."""
    words = np.empty(values.shape, dtype=stored_dtype(dtype))
    greatest = np.float32(_GREATEST[dtype])
    usable = np.isfinite(scales)
    divisors = np.where(usable & (scales > 0), scales, np.float32(1))
    for rows in _blocks(len(values)):
        with np.errstate(over="ignore", invalid="ignore"):
            ratios = values[rows] / divisors[rows, None]
        np.nan_to_num(ratios, copy=False, nan=0.0)  # of rows whose words are overwritten below
        np.clip(ratios, -greatest, greatest, out=ratios)
        if dtype == "int8":
            words[rows] = np.rint(ratios, out=ratios)
        else:
            words[rows] = ratios.astype(_FLOAT8).view(np.uint8)
    words[~usable] = _ONE[dtype]
    return words


def dequantise(words: Words, scales: Scales, dtype: Dtype) -> Floats:
    """Values [T, D], a new array."""
    # No index is outside the table; ``clip`` only spares a check that costs ten times as much as the look-up.
    values = words.astype(np.float32) if dtype == "int8" else np.take(_FLOAT8_VALUES, words, mode="clip")
    values *= scales[:, None]
    return values


def rounding_error(values: Floats, stored: Floats) -> Rounding:
    """Of the finite rows of values [T, D], against what the store gives for them; summed in row order."""
    error = norm = 0.0
    for rows in _blocks(len(values)):
        block = values[rows].astype(np.float64)
        finite = np.isfinite(block).all(axis=1)
        block = block[finite]
        difference = stored[rows][finite] - block
        error += float(np.einsum("td,td->", difference, difference))
        norm += float(np.einsum("td,td->", block, block))
    return Rounding(square_error_sum=error, square_norm_sum=norm)


def relative_error(rounding: Rounding) -> float:
    """Norm of all that rounding changed over the norm of all values; 0 of rows that are all zero, and of no rows."""
    return math.sqrt(rounding.square_error_sum / rounding.square_norm_sum) if rounding.square_norm_sum else 0.0


def _blocks(num_rows: int) -> Iterator[slice]:
    """Few rows at a time, so that what is computed in between stays small."""
    for start in range(0, num_rows, _BLOCK_ROWS):
        yield slice(start, start + _BLOCK_ROWS)
