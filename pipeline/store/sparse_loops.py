"""The compiled loops of ``sparse_codec``, over unsigned words of any size.

Nothing branches on a word, for whether one is zero cannot be guessed: every word is moved, and counted if it is meant.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.store.bf16_tables import compiled


@compiled
def split(words: Any, mask: Any, kept: Any) -> Any:
    """Bit i % 8 of ``mask[i // 8]`` says whether word i is not zero; those words go to ``kept``. Returns their number.

    ``kept`` has room for all words.
    """
    count: Any = 0
    whole = len(words) // 8
    for byte in range(whole):
        bits: Any = 0
        for bit in range(8):
            word = words[8 * byte + bit]
            kept[count] = word
            is_kept = np.int64(word != 0)
            bits |= is_kept << bit
            count += is_kept
        mask[byte] = bits
    if whole < len(mask):
        bits = 0
        for bit in range(len(words) - 8 * whole):
            word = words[8 * whole + bit]
            kept[count] = word
            is_kept = np.int64(word != 0)
            bits |= is_kept << bit
            count += is_kept
        mask[whole] = bits
    return count


@compiled
def join(mask: Any, kept: Any, out: Any) -> None:
    """``out``, zeros before, gets the words of ``kept`` where ``mask`` has a bit.

    The caller has counted the bits, and ``kept`` has one word more, which is read and not used.
    """
    at: Any = 0
    whole = len(out) // 8
    for byte in range(whole):
        bits = np.int64(mask[byte])
        if bits == 0:
            continue
        for bit in range(8):
            is_kept = bits >> bit & 1
            out[8 * byte + bit] = np.uint64(kept[at]) & np.uint64(-is_kept)  # all ones or none
            at += is_kept
    for bit in range(len(out) - 8 * whole):
        if mask[whole] >> bit & 1:
            out[8 * whole + bit] = kept[at]
            at += 1
