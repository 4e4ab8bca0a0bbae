"""Tables of the bf16 codec: which codes its symbols have, and which table and binade each channel has.

``bf16_codec`` describes the method. Here and in ``bf16_encoding`` and ``bf16_decoding`` all arithmetic is on integers,
so every machine writes the same bytes, and the interpreter lock is released. Compiled loops call none of another file:
Numba keeps machine code on disk and notices changes of a loop's own file only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import int64, uint8, uint16

CLASSES = 4
"""Code tables, one for each quarter of a binade in which the scale of a word can lie."""
SYMBOLS = 128
"""(step above the lowest binade 0..30, or 31: none of these) x sign x highest bit of the mantissa."""
OTHER = 31
LONGEST = 11
"""Bits of the longest code: five codes fit in what one unaligned load of 64 bits is sure to hold."""
BELOW = 20
"""Binades below a word's scale that have symbols; 10 above it have."""
STREAMS = 4
"""Channel c is in stream c % 4: four codes are looked up side by side, which hides how long each takes."""

_TABLE = 1 << LONGEST
_njit: Callable[..., Any] = numba.njit


def compiled(function: Callable[..., Any]) -> Any:
    """Machine code is kept beside the file, or in the user's cache folder, or nowhere if neither can be written."""
    try:
        return _njit(nogil=True, boundscheck=False, cache=True)(function)
    except RuntimeError:  # Numba found no folder to keep it in.
        return _njit(nogil=True, boundscheck=False)(function)


@compiled
def channel_tables(channels: Any, class_places: Any) -> Any:
    """For each phase of a row [4, W]: where the channel's class begins in a table of ``class_places`` places a class,
    and a word with the lowest exponent that has symbols and with the channel's usual sign."""
    offsets = np.empty((CLASSES, channels.shape[0]), np.uint16)
    bias = np.empty((CLASSES, channels.shape[0]), np.uint16)
    for phase in range(CLASSES):
        for c in range(channels.shape[0]):
            scale = int64(phase) + int64(channels[c] & uint8(127))
            offsets[phase, c] = (scale % CLASSES) * class_places
            bias[phase, c] = uint16((((scale // CLASSES) - BELOW) << 7) ^ (int64(channels[c] >> uint8(7)) << 15))
    return offsets, bias


@compiled
def prefix_codes(counts: Any) -> Any:
    """Counts [stream, class, symbol] -> (lengths [4, 128], codes << 4 | lengths [4, 128], bytes of each stream [4])."""
    lengths, codes = np.zeros((CLASSES, SYMBOLS), np.uint8), np.zeros((CLASSES, SYMBOLS), np.uint16)
    bits = np.zeros(STREAMS, np.int64)
    totals = np.empty(SYMBOLS, np.int64)
    for k in range(CLASSES):
        for symbol in range(SYMBOLS):
            totals[symbol] = (
                int64(counts[0, k, symbol]) + counts[1, k, symbol] + counts[2, k, symbol] + counts[3, k, symbol]
            )
        _code_lengths(totals, lengths[k])
        _codes_of(lengths[k], codes[k])
        for symbol in range(SYMBOLS):
            codes[k, symbol] = codes[k, symbol] << uint16(4) | lengths[k, symbol]
            for stream in range(STREAMS):
                bits[stream] += int64(counts[stream, k, symbol]) * lengths[k, symbol]
    for stream in range(STREAMS):
        bits[stream] = (bits[stream] + 7) // 8
    return lengths, codes, bits


@compiled
def _code_lengths(counts: Any, lengths: Any) -> None:
    """Of the shortest prefix code without codes longer than LONGEST: package-merge (Larmore and Hirschberg, 1990)."""
    keys = np.empty(SYMBOLS, np.int64)  # ascending: count, then symbol
    used = 0
    for symbol in range(SYMBOLS):
        lengths[symbol] = 0
        if counts[symbol]:
            key, place = counts[symbol] * SYMBOLS + symbol, used
            while place > 0 and keys[place - 1] > key:
                keys[place] = keys[place - 1]
                place -= 1
            keys[place] = key
            used += 1
    if used == 0:
        return
    if used == 1:
        lengths[keys[0] % SYMBOLS] = 1
        return
    weights = np.empty(used, np.int64)
    for i in range(used):
        weights[i] = keys[i] // SYMBOLS
    # leaves[level, i]: how many of the i lightest items of that level are symbols; the others are pairs of lower ones.
    leaves = np.zeros((LONGEST, 2 * SYMBOLS), np.int64)
    items, merged, size = np.empty(2 * SYMBOLS, np.int64), np.empty(2 * SYMBOLS, np.int64), 0
    for level in range(LONGEST):
        pairs = size // 2
        leaf = pair = 0
        for i in range(used + pairs):
            if pair == pairs or (leaf < used and weights[leaf] <= items[2 * pair] + items[2 * pair + 1]):
                merged[i] = weights[leaf]
                leaf += 1
            else:
                merged[i] = items[2 * pair] + items[2 * pair + 1]
                pair += 1
            leaves[level, i + 1] = leaf
        size = used + pairs
        items, merged = merged, items
    taken = 2 * used - 2
    for level in range(LONGEST - 1, -1, -1):
        leaf = leaves[level, taken]
        for i in range(leaf):
            lengths[keys[i] % SYMBOLS] += 1
        taken = 2 * (taken - leaf)


@compiled
def _codes_of(lengths: Any, codes: Any) -> None:
    """Canonical codes of one class: shorter ones first, then by symbol; bits reversed, as they lie in the stream."""
    code = 0
    for length in range(1, LONGEST + 1):
        for symbol in range(SYMBOLS):
            if lengths[symbol] == length:
                reverse = 0
                for bit in range(length):
                    reverse |= ((code >> bit) & 1) << (length - 1 - bit)
                codes[symbol] = reverse
                code += 1
        code <<= 1


@compiled
def fill_table(packed_lengths: Any, table: Any) -> bool:
    """For each class and the next LONGEST bits: the symbol, spread to its places in a word, | length of its code.

    Bit 14 marks symbols without a step. Returns False where the lengths are not those of a complete code.
    """
    codes, lengths = np.zeros(SYMBOLS, np.uint16), np.empty((CLASSES, SYMBOLS), np.uint8)
    for pair in range(packed_lengths.shape[0]):
        symbol = 2 * pair % SYMBOLS
        lengths[2 * pair // SYMBOLS, symbol] = packed_lengths[pair] & uint8(15)
        lengths[2 * pair // SYMBOLS, symbol + 1] = packed_lengths[pair] >> uint8(4)
    for k in range(CLASSES):
        room = used = 0
        for symbol in range(SYMBOLS):
            length = int64(lengths[k, symbol])
            if length > LONGEST:
                return False
            if length:
                room += _TABLE >> length
                used += 1
        if room != _TABLE and not (used == 0 or (used == 1 and room == _TABLE // 2)):
            return False
        _codes_of(lengths[k], codes)
        for symbol in range(SYMBOLS):
            length = int64(lengths[k, symbol])
            if length:
                step = symbol >> 2
                entry = (step << 7 if step != OTHER else 0x4000) | (symbol & 2) << 14 | (symbol & 1) << 6 | length
                for place in range(codes[symbol] if used > 1 else 0, _TABLE, 1 << length if used > 1 else 1):
                    table[k * _TABLE + place] = entry
    return True
