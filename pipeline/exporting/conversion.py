"""From the words of one store to those of another.

Widening is exact to the last bit, payloads of NaN included, and so is narrowing what was widened before: a store that
was exported remembers in which precision its values came about.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.store.words import Floats, Words, to_float32, to_words
from schemas.errors import SpecError
from schemas.fields import LOSSY, Dtype
from schemas.store import StoreRecord


def value_dtype(record: StoreRecord) -> Dtype:
    """The least lossless precision that is known to hold every value of a store."""
    if record.exported is not None:
        return record.exported.value_dtype
    return "float32" if record.lossy else record.dtype


def is_exact(values: Dtype, dtype: Dtype) -> bool:
    """Whether ``dtype`` holds whatever ``values`` does."""
    return dtype in (values, "float32")


def require_consent(record: StoreRecord, dtype: Dtype, *, lossy: bool) -> None:
    """Refuse to lose precision that nobody agreed to lose.

    Raises:
        SpecError: says what would be lost.
    """
    values = value_dtype(record)
    if record.lossy and dtype == record.dtype:
        return  # words and scales are taken as they are
    if record.lossy and dtype in LOSSY:
        raise SpecError(
            f"the store is lossy already ({record.dtype}): rounding it to {dtype} would lose more. "
            "Export the lossless store that it was made from."
        )
    if lossy or is_exact(values, dtype):
        return
    raise SpecError(
        f"{dtype} cannot hold every {values} value of the store: the rest would be rounded, and the store could not be "
        "made again from the export. Add --lossy to accept that."
    )


def widened(words: Words, dtype: Dtype) -> Floats:
    """float32 [n, D]; of float16 without the help of the processor, which makes signalling NaNs quiet."""
    with np.errstate(invalid="ignore"):
        values = to_float32(words, dtype)
    if dtype == "float16" and (is_nan := np.isnan(words)).any():
        bits = words.view(np.uint16)[is_nan].astype(np.uint32)
        values.view(np.uint32)[is_nan] = ((bits & 0x8000) << 16) | 0x7F800000 | ((bits & 0x3FF) << 13)
    return values


def narrowed(values: Floats, dtype: Dtype) -> Words:
    """Words [n, D]: rounded to the nearest, and exactly what was widened where it was.

    Raises:
        SpecError: a number is beyond the range of ``dtype``.
    """
    with np.errstate(invalid="ignore"):
        words = to_words(values, dtype)
    _require_in_range(values, words, dtype)
    if dtype == "float32" or not (is_nan := np.isnan(values)).any():
        return words
    bits = np.ascontiguousarray(values).view(np.uint32)
    shift, kept = (
        (16, bits >> 16) if dtype == "bfloat16" else (13, (bits >> 16 & 0x8000) | 0x7C00 | (bits >> 13 & 0x3FF))
    )
    exact = is_nan & (bits & np.uint32((1 << shift) - 1) == 0)
    words.view(np.uint16)[exact] = kept[exact]
    return words


def _half_bits(bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """The float16 of a float32 NaN: sign, all exponent bits, the upper payload."""
    return (((bits >> 16) & 0x8000) | 0x7C00 | ((bits >> 13) & 0x3FF)).astype(np.uint32)


def _require_in_range(values: Floats, words: Words, dtype: Dtype) -> None:
    if dtype == "float32":
        return
    # Infinity, in the bits of either type: the greatest exponent and no mantissa.
    became = (words.view(np.uint16) & 0x7FFF) == (0x7F80 if dtype == "bfloat16" else 0x7C00)
    beyond = became & np.isfinite(values)
    if beyond.any():
        row, channel = (int(index[0]) for index in np.nonzero(beyond))
        raise SpecError(
            f"{dtype} has no number near {values[row, channel]:.6g} (row {row} of the unit, channel {channel}): it "
            "would become infinite. Export to bfloat16 or float32."
        )
