"""Putting the rows of a chunk where the shuffle wants them: one pass, at about the speed of a plain copy.

A copy from cache to a buffer that is larger than the cache first reads every line that it is about to overwrite.
``memcpy`` of a large block avoids that with stores that go past the cache, but a shuffle copies one row at a time. So
the loop below is compiled with such stores for whole rows; they double its speed. Rows are read in order, so that the
processor fetches ahead, and written at random. The lock of the interpreter is not held.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store.words import Words

Slots = npt.NDArray[np.int32]
"""For each row of a chunk its place in the window's buffer; -1: the row is left out."""

ALIGNMENT = 64
"""Bytes: a buffer that begins at a multiple of this, with rows that are multiples of ``_STEP``, takes the fast way."""
_STEP = 32


def place_rows(source: Words, slots: Slots, out: Words) -> None:
    """``out[slots[i]] = source[i]`` where ``slots[i] >= 0``; both [.., D] of one type, rows without gaps.

    Raises:
        IndexError: a slot that ``out`` does not have.
    """
    if len(slots) and not (slots.min() >= -1 and slots.max() < len(out)):
        raise IndexError(f"slots of {slots.min()}..{slots.max()} in a buffer of {len(out)} rows")
    row_bytes = source.shape[1] * source.itemsize
    target = out.__array_interface__["data"][0]
    if row_bytes % _STEP or target % _STEP or not (_rows_are_whole(source) and _rows_are_whole(out)):
        kept = slots >= 0
        out[slots[kept]] = source[kept]
        return
    _stream()(source.__array_interface__["data"][0], source.strides[0], slots, target, out.strides[0], row_bytes)


def aligned_empty(num_rows: int, width: int, dtype: np.dtype[Any]) -> Words:
    """Uninitialised [num_rows, width] that begins at a multiple of ``ALIGNMENT``."""
    size_bytes = num_rows * width * dtype.itemsize
    raw = np.empty(size_bytes + ALIGNMENT, dtype=np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[start : start + size_bytes].view(dtype).reshape(num_rows, width)


def _rows_are_whole(array: Words) -> bool:
    return array.strides[1] == array.itemsize


@cache
def _stream() -> Callable[..., None]:
    """Compiled at the first call: importing numba takes longer than opening a store."""
    import numba
    from llvmlite import ir  # type: ignore[import-untyped]
    from numba.core import cgutils
    from numba.extending import intrinsic

    def _copy(typing: Any, source: Any, target: Any, size: Any) -> Any:
        """``size`` bytes, a multiple of ``_STEP``; ``target`` is a multiple of it, ``source`` need not be."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source, target, size = arguments
            block = ir.VectorType(ir.IntType(64), _STEP // 8)
            hint = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
            step = ir.Constant(size.type, _STEP)
            with cgutils.for_range_slice(builder, ir.Constant(size.type, 0), size, step) as (at, _):
                value = builder.load(builder.inttoptr(builder.add(source, at), block.as_pointer()), align=1)
                store = builder.store(value, builder.inttoptr(builder.add(target, at), block.as_pointer()), align=_STEP)
                store.set_metadata("nontemporal", hint)
            return context.get_dummy_value()

        return numba.void(numba.int64, numba.int64, numba.int64), generate

    def _fence(typing: Any) -> Any:
        """Such stores are not ordered with others: without a fence another thread could see the rows of before."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            builder.fence("seq_cst")
            return context.get_dummy_value()

        return numba.void(), generate

    copy_past_cache: Any = intrinsic(_copy)
    fence: Any = intrinsic(_fence)

    def stream(source: int, source_stride: int, slots: Any, target: int, target_stride: int, row_bytes: int) -> None:
        for row in range(len(slots)):
            if slots[row] >= 0:
                copy_past_cache(source + row * source_stride, target + slots[row] * target_stride, row_bytes)
        fence()

    whole = numba.int64
    kernel: Callable[..., None] = numba.njit(
        numba.void(whole, whole, numba.types.Array(numba.int32, 1, "C", readonly=True), whole, whole, whole),
        nogil=True, boundscheck=False,
    )(stream)  # fmt: skip
    return kernel
