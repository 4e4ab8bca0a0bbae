"""Stored words: what one activation is on disk, and its way to and from float32.

bfloat16 has no numpy type, so its 16 bits are kept as uint16; float16 and float32 are stored as they are. All words
are little-endian. Words of lossy dtypes mean something with their row's scale only: see ``pipeline.store.rounding``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.fields import LOSSY, Dtype

Words = npt.NDArray[Any]
"""[T, D]: uint16 (bfloat16), float16, float32, int8 or uint8 (float8_e4m3), little-endian."""
Floats = npt.NDArray[np.float32]

_STORED: dict[Dtype, str] = {"bfloat16": "<u2", "float16": "<f2", "float32": "<f4", "int8": "i1", "float8_e4m3": "u1"}


def stored_dtype(dtype: Dtype) -> np.dtype[Any]:
    """The numpy type that holds ``dtype`` on disk."""
    return np.dtype(_STORED[dtype])


def to_words(values: Floats, dtype: Dtype) -> Words:
    """Round to the nearest word, ties to even; NaN stays NaN, overflow becomes infinity.

    bfloat16 is the upper half of a float32, so rounding is an addition to the 32 bits: 0x7fff plus the lowest bit
    that is kept. The carry runs into the exponent as IEEE 754 wants it.
    """
    _require_lossless(dtype)
    if dtype == "float32":
        return np.ascontiguousarray(values, dtype="<f4")
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values).astype("<f2")
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    # The addition would carry a NaN with a full mantissa round to zero: cut NaNs off instead and keep them quiet.
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(is_nan, quiet, rounded).astype("<u2")


def to_float32(words: Words, dtype: Dtype) -> Floats:
    """Exact for every lossless dtype; a new array unless the words are float32 already."""
    _require_lossless(dtype)
    if dtype == "bfloat16":
        bits = words.astype(np.uint32)
        bits <<= np.uint32(16)  # in place: new memory costs more than the shift
        return bits.view(np.float32)
    return words.astype(np.float32, copy=False)


def _require_lossless(dtype: Dtype) -> None:
    if dtype in LOSSY:
        raise ValueError(f"words of {dtype} need the scale of their row: use pipeline.store.rounding")
