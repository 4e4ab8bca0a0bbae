"""The compiled loops of ``sparse_codec``, over unsigned words of any size."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.store.bf16_tables import compiled


@compiled
def split(words: Any, mask: Any, kept: Any) -> Any:
    """Bit i % 8 of ``mask[i // 8]`` says whether word i is not zero; those words go to ``kept``. Returns their number.

    ``kept`` has room for all words: each is written, and written over unless it counts, so that nothing branches.
    """
    count: Any = 0
    for byte in range(len(mask)):
        bits: Any = 0
        first = 8 * byte
        for bit in range(min(8, len(words) - first)):
            word = words[first + bit]
            kept[count] = word
            is_kept = np.int64(word != 0)
            bits |= is_kept << bit
            count += is_kept
        mask[byte] = bits
    return count


@compiled
def join(mask: Any, kept: Any, out: Any) -> None:
    """``out``, zeros before, gets the words of ``kept`` where ``mask`` has a bit; the caller has counted the bits."""
    at = 0
    for byte in range(len(mask)):
        bits = mask[byte]
        if bits == 0:
            continue
        first = 8 * byte
        for bit in range(min(8, len(out) - first)):
            if bits >> bit & 1:
                out[first + bit] = kept[at]
                at += 1
