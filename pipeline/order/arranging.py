"""From the eligible rows of some chunks and their random order to who goes where, in one compiled pass.

numpy does the same in a dozen passes that hold the interpreter's lock, for as long as the copying of the rows takes:
the threads that copy would wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int32]
"""For each row of some chunks its place in the order, [.., chunk_rows]; -1: the row is left out."""


def arrange(mask: npt.NDArray[np.uint8], chunks: Ints, order: Ints) -> tuple[Ints, Ints, Slots]:
    """``mask`` [W, chunk_rows] marks the n eligible rows of ``chunks`` [W]; ``order`` [n] says which of them, counted
    chunk by chunk, is first, second, and so on. Row ids in that order [n], the place of each one's chunk [n], and the
    slots [W, chunk_rows].

    Raises:
        ValueError: the mask does not mark as many rows as ``order`` has.
    """
    rows, places = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    slots = np.empty(mask.shape, np.int32)
    if _arrange()(mask, chunks, order, rows, places, slots) != len(order):
        raise ValueError(f"{len(order)} rows to put in order, but the mask marks others")
    return rows, places, slots


@cache
def _arrange() -> Callable[..., int]:
    import numba

    def compiled(mask: Any, chunks: Any, order: Any, rows: Any, places: Any, slots: Any) -> int:
        size = mask.shape[1]
        where = np.empty(len(order) + 1, np.int64)
        count = 0
        for place in range(mask.shape[0]):
            for offset in range(size):
                slots[place, offset] = -1
                if mask[place, offset]:
                    where[min(count, len(order))] = place * size + offset
                    count += 1
        if count != len(order):
            return count
        for slot in range(count):
            at = where[order[slot]]
            place = at // size
            rows[slot] = chunks[place] * size + at - place * size
            places[slot] = place
            slots[place, at - place * size] = slot
        return count

    kernel: Callable[..., int] = numba.njit(nogil=True, boundscheck=False)(compiled)
    return kernel
