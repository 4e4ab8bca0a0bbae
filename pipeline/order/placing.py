"""Putting the rows of a chunk where the shuffle wants them: one pass, at about the speed of a plain copy.

A copy from cache to a buffer that is larger than the cache first reads every line that it is about to overwrite.
``memcpy`` of a large block avoids that with stores that go past the cache, but a shuffle copies one row at a time. So
the loop below is compiled with such stores for whole rows; they double its speed. Rows are read in order, so that the
processor fetches ahead, and written at random. The lock of the interpreter is not held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from pipeline.order.arranging import Slots
from pipeline.store.words import Words

ALIGNMENT = 64
"""Bytes: a buffer that begins at a multiple of this, with rows that are multiples of ``_STEP``, takes the fast way."""
_STEP = 32


def place_chunks(sources: Sequence[Words], slots: Slots, out: Words) -> None:
    """``out[slots[c, i]] = sources[c][i]`` where ``slots[c, i] >= 0``: sources [.., D] of one type, slots
    [C, chunk_rows], of which a shorter source takes the first.

    Raises:
        IndexError: a slot that ``out`` does not have.
    """
    if slots.size and not (slots.min() >= -1 and slots.max() < len(out)):
        raise IndexError(f"slots of {slots.min()}..{slots.max()} in a buffer of {len(out)} rows")
    row_bytes = out.shape[1] * out.itemsize
    target = _address(out)
    if row_bytes % _STEP or target % _STEP or any(source.strides[1] != source.itemsize for source in (out, *sources)):
        for source, own in zip(sources, slots, strict=True):
            kept = np.flatnonzero(own[: len(source)] >= 0)
            out[own[kept]] = source[kept]
        return
    facts = np.array([(_address(source), source.strides[0], len(source)) for source in sources], np.int64)
    _stream()(facts.reshape(-1, 3), slots, target, out.strides[0], row_bytes)


def aligned_empty(num_rows: int, width: int, dtype: np.dtype[Any]) -> Words:
    """Uninitialised [num_rows, width] that begins at a multiple of ``ALIGNMENT``."""
    size_bytes = num_rows * width * dtype.itemsize
    raw = np.empty(size_bytes + ALIGNMENT, dtype=np.uint8)
    start = -_address(raw) % ALIGNMENT
    return raw[start : start + size_bytes].view(dtype).reshape(num_rows, width)


def _address(array: Words) -> int:
    return int(array.__array_interface__["data"][0])


@cache
def _stream() -> Callable[..., None]:
    """Compiled at the first call: importing numba takes longer than opening a store."""
    import numba
    from llvmlite import ir
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

    def stream(sources: Any, slots: Any, target: int, target_stride: int, row_bytes: int) -> None:
        for chunk in range(len(sources)):
            for row in range(sources[chunk, 2]):
                slot = slots[chunk, row]
                if slot >= 0:
                    source = sources[chunk, 0] + row * sources[chunk, 1]
                    copy_past_cache(source, target + slot * target_stride, row_bytes)
        fence()

    kernel: Callable[..., None] = numba.njit(nogil=True, boundscheck=False)(stream)
    return kernel
