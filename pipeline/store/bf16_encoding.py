"""Encoding of the bf16 codec: words to places, places to streams. See ``bf16_codec`` and ``bf16_tables``.

Letters: R rows, W channels (a multiple of 4). Numba widens small integers to 64 bits; the casts keep them narrow, which
is what lets loops over a row work on 16 words at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int64, uint8, uint16, uint32, uint64

from pipeline.store.bf16_tables import CLASSES, OTHER, STREAMS, SYMBOLS, compiled

_EXPONENT = 0x7F80
_FARTHEST = (OTHER - 1) << 7


@compiled
def scales_of(words: Any) -> Any:
    """(origin, rows [R], channels [W]): the scale of a word in quarter binades is origin + row + the lower 7 bits of
    channel; the highest bit of channel is its usual sign."""
    num_rows, width = words.shape
    rows, row_counts = np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int64)
    channels, channel_counts = np.zeros(width, np.int64), np.zeros(width, np.int64)
    negative = np.zeros(width, np.int64)
    _add_up(words, rows, row_counts, channels, channel_counts, negative)
    mean = 4 * rows.sum() // max(row_counts.sum(), 1)
    for r in range(num_rows):
        rows[r] = 4 * rows[r] // row_counts[r] - mean if row_counts[r] else 0
    for c in range(width):
        channels[c] = 4 * channels[c] // channel_counts[c] if channel_counts[c] else mean
    # Where scales span more than these bytes tell, those far from the mean are not met: one row of NaN spoils no other.
    row_origin, channel_origin = max(rows.min(), -128), max(channels.min(), mean - 64)
    row_bytes, channel_bytes = np.empty(num_rows, np.uint8), np.empty(width, np.uint8)
    for r in range(num_rows):
        row_bytes[r] = min(max(rows[r] - row_origin, 0), 255)
    for c in range(width):
        usual = 128 if 2 * negative[c] > num_rows else 0
        channel_bytes[c] = min(max(channels[c] - channel_origin, 0), 127) | usual
    return row_origin + channel_origin, row_bytes, channel_bytes


@compiled
def _add_up(words: Any, rows: Any, row_counts: Any, channels: Any, channel_counts: Any, negative: Any) -> None:
    """Sums and numbers of the exponents other than zero by row [R] and channel [W], and minus signs by channel [W]."""
    num_rows, width = words.shape
    sums, counts, signs = np.empty(width, np.uint16), np.empty(width, np.uint16), np.empty(width, np.uint16)
    for first in range(0, num_rows, 256):  # 256 exponents add up to less than 2^16
        sums[:], counts[:], signs[:] = 0, 0, 0
        for r in range(first, min(first + 256, num_rows)):
            row = words[r]
            for c in range(width):
                exponent = (row[c] >> uint16(7)) & uint16(255)
                sums[c] += uint16(exponent)
                counts[c] += uint16(exponent != 0)
                signs[c] += uint16(row[c] >> uint16(15))
            total, count = uint32(0), uint32(0)
            for c in range(width):
                exponent = (row[c] >> uint16(7)) & uint16(255)
                total += uint32(exponent)
                count += uint32(exponent != 0)
            rows[r], row_counts[r] = total, count
        for c in range(width):
            channels[c] += sums[c]
            channel_counts[c] += counts[c]
            negative[c] += signs[c]


@compiled
def place_words(words: Any, origin: Any, rows: Any, offsets: Any, bias: Any, places: Any) -> int:
    """Each word's class * 128 + symbol into ``places`` [R, W].

    Returns how many words have an exponent that no symbol tells.
    """
    exceptions = 0
    for r in range(words.shape[0]):
        row, out = words[r], places[r]
        scale = int64(origin) + int64(rows[r])
        row_offsets, row_bias = offsets[scale % CLASSES], bias[scale % CLASSES]
        octave = uint16((scale // CLASSES) << 7)
        farthest = uint16(0)
        for c in range(row.shape[0]):
            # Sign and exponent in one subtraction modulo 2^16: adding gives them back, whatever they were.
            step = uint16((row[c] & uint16(0xFF80)) - row_bias[c] - octave)
            farthest = max(farthest, uint16(step & uint16(0x7FFF)))
            symbol = (
                (step >> uint16(5)) & uint16(124) | (step >> uint16(14)) & uint16(2) | (row[c] >> uint16(6)) & uint16(1)
            )
            out[c] = row_offsets[c] + uint16(symbol)
        if farthest > uint16(_FARTHEST):
            for c in range(row.shape[0]):
                step = uint16((row[c] & uint16(0xFF80)) - row_bias[c] - octave)
                if uint16(step & uint16(0x7FFF)) > uint16(_FARTHEST):
                    symbol = uint16(OTHER << 2) | (row[c] >> uint16(14)) & uint16(2) | (row[c] >> uint16(6)) & uint16(1)
                    out[c] = row_offsets[c] + uint16(symbol)
                    exceptions += (row[c] & uint16(_EXPONENT)) != 0
    return exceptions


@compiled
def exceptions_of(words: Any, places: Any, number: Any) -> Any:
    """Flat positions [E] and exponents [E] of the words that ``place_words`` counted."""
    positions, exponents = np.empty(number, np.uint32), np.empty(number, np.uint8)
    found = 0
    for r in range(words.shape[0] if number else 0):
        for c in range(words.shape[1]):
            exponent = (words[r, c] & uint16(_EXPONENT)) >> uint16(7)
            if exponent != 0 and (places[r, c] % SYMBOLS) >> 2 == OTHER:
                positions[found] = r * words.shape[1] + c
                exponents[found] = exponent
                found += 1
    return positions, exponents


@compiled
def count_places(places: Any) -> Any:
    """How often each place occurs, by stream: [4, 4, 128]."""
    counts = np.zeros(STREAMS * CLASSES * SYMBOLS, np.uint32)
    size = uint64(CLASSES * SYMBOLS)
    flat = places.reshape(-1)
    c, end = uint64(0), uint64(flat.shape[0])
    while c < end:
        counts[flat[c]] += uint32(1)
        counts[size + flat[c + uint64(1)]] += uint32(1)
        counts[size * uint64(2) + flat[c + uint64(2)]] += uint32(1)
        counts[size * uint64(3) + flat[c + uint64(3)]] += uint32(1)
        c += uint64(4)
    return counts.reshape(STREAMS, CLASSES, SYMBOLS)


@compiled
def write_streams(places: Any, codes: Any, sizes: Any) -> Any:
    """Codes, given as code << 4 | length by place, as streams of ``sizes`` bytes [4], 8 bytes of waste after each."""
    room = uint64(8)
    at0 = uint64(0)
    at1 = at0 + uint64(sizes[0]) + room
    at2 = at1 + uint64(sizes[1]) + room
    at3 = at2 + uint64(sizes[2]) + room
    out = np.empty(at3 + uint64(sizes[3]) + room, np.uint8)
    bits0 = bits1 = bits2 = bits3 = uint64(0)
    held0 = held1 = held2 = held3 = uint64(0)
    width = uint64(places.shape[1])
    for r in range(places.shape[0]):
        row = places[r]
        c = uint64(0)
        while c < width:
            stop = min(c + uint64(20), width)
            while c < stop:
                code0, code1 = uint64(codes[row[c]]), uint64(codes[row[c + uint64(1)]])
                code2, code3 = uint64(codes[row[c + uint64(2)]]), uint64(codes[row[c + uint64(3)]])
                bits0 |= (code0 >> uint64(4)) << held0
                bits1 |= (code1 >> uint64(4)) << held1
                bits2 |= (code2 >> uint64(4)) << held2
                bits3 |= (code3 >> uint64(4)) << held3
                held0 += code0 & uint64(15)
                held1 += code1 & uint64(15)
                held2 += code2 & uint64(15)
                held3 += code3 & uint64(15)
                c += uint64(4)
            at0, bits0, held0 = _flush(out, at0, bits0, held0)
            at1, bits1, held1 = _flush(out, at1, bits1, held1)
            at2, bits2, held2 = _flush(out, at2, bits2, held2)
            at3, bits3, held3 = _flush(out, at3, bits3, held3)
    return out


@compiled
def _flush(out: Any, at: Any, bits: Any, held: Any) -> Any:
    """Write all bits (62 at most), keep those of the last byte if it is not full."""
    _store(out, at, bits)
    return at + (held >> uint64(3)), bits >> (held & uint64(56)), held & uint64(7)


@compiled
def _store(data: Any, at: Any, value: Any) -> None:
    """8 little-endian bytes: one store, once compiled."""
    data[at] = uint8(value)
    data[at + uint64(1)] = uint8(value >> uint64(8))
    data[at + uint64(2)] = uint8(value >> uint64(16))
    data[at + uint64(3)] = uint8(value >> uint64(24))
    data[at + uint64(4)] = uint8(value >> uint64(32))
    data[at + uint64(5)] = uint8(value >> uint64(40))
    data[at + uint64(6)] = uint8(value >> uint64(48))
    data[at + uint64(7)] = uint8(value >> uint64(56))


@compiled
def pack_low_bits(words: Any, out: Any) -> None:
    """The lowest 6 bits of the words [R, W] into [R, 3 * W / 4], laid out as ``bf16_codec`` describes."""
    quarter = words.shape[1] // 4
    for r in range(words.shape[0]):
        row = words[r]
        first, second, third, fourth = row[:quarter], row[quarter : 2 * quarter], row[2 * quarter :], row[3 * quarter :]
        even, odd, high = out[r, :quarter], out[r, quarter : 2 * quarter], out[r, 2 * quarter :]
        for i in range(quarter):
            even[i] = uint8((first[i] & uint16(15)) | (third[i] & uint16(15)) << uint16(4))
        for i in range(quarter):
            odd[i] = uint8((second[i] & uint16(15)) | (fourth[i] & uint16(15)) << uint16(4))
        for i in range(quarter):
            low = (first[i] >> uint16(4)) & uint16(3) | (second[i] >> uint16(2)) & uint16(12)
            high[i] = uint8(low | third[i] & uint16(48) | (fourth[i] << uint16(2)) & uint16(192))
