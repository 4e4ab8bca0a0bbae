"""Decoding of the bf16 codec: streams to words. See ``bf16_codec`` and ``bf16_tables``.

Letters: R rows, W channels (a multiple of 4). The casts keep integers narrow, as in ``bf16_encoding``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int64, uint8, uint16, uint64

from pipeline.store.bf16_tables import CLASSES, LONGEST, STREAMS, compiled


@compiled
def read_rows(
    data: Any, starts: Any, origin: Any, rows: Any, offsets: Any, bias: Any, table: Any, low_bits: Any, out: Any
) -> Any:
    """Words of R rows into ``out`` [R, W] from the streams that begin at ``starts`` [4].

    Returns where the streams end. No address outside the arrays is touched whatever they hold, provided that ``data``
    has 8 bytes and ``table`` comes from ``fill_table``.
    """
    last, mask, six = uint64(data.shape[0] - 8), uint64((1 << LONGEST) - 1), uint64(63)
    at0, at1, at2, at3 = uint64(starts[0]), uint64(starts[1]), uint64(starts[2]), uint64(starts[3])
    read0 = read1 = read2 = read3 = uint64(0)
    width = uint64(out.shape[1])
    entries = np.empty(out.shape[1], np.uint16)
    for r in range(out.shape[0]):
        scale = int64(origin) + int64(rows[r])
        phase = scale % CLASSES
        row = offsets[phase]
        c = uint64(0)
        while c < width:
            stop = min(c + uint64(20), width)
            at0, read0, bits0 = _refill(data, at0, read0, last)
            at1, read1, bits1 = _refill(data, at1, read1, last)
            at2, read2, bits2 = _refill(data, at2, read2, last)
            at3, read3, bits3 = _refill(data, at3, read3, last)
            while c < stop:
                entry0 = table[uint64(row[c]) | (bits0 & mask)]
                entry1 = table[uint64(row[c + uint64(1)]) | (bits1 & mask)]
                entry2 = table[uint64(row[c + uint64(2)]) | (bits2 & mask)]
                entry3 = table[uint64(row[c + uint64(3)]) | (bits3 & mask)]
                # The lowest 6 bits of an entry are its length; what lies above adds nothing to the lowest 6 of a sum.
                bits0 >>= uint64(entry0) & six
                bits1 >>= uint64(entry1) & six
                bits2 >>= uint64(entry2) & six
                bits3 >>= uint64(entry3) & six
                read0 += uint64(entry0)
                read1 += uint64(entry1)
                read2 += uint64(entry2)
                read3 += uint64(entry3)
                entries[c] = entry0
                entries[c + uint64(1)] = entry1
                entries[c + uint64(2)] = entry2
                entries[c + uint64(3)] = entry3
                c += uint64(4)
        _merge(entries, bias[phase], uint16((scale // CLASSES) << 7), low_bits[r], out[r])
    stops = np.empty(STREAMS, np.int64)
    stops[0] = at0 + (((read0 & six) + uint64(7)) >> uint64(3))
    stops[1] = at1 + (((read1 & six) + uint64(7)) >> uint64(3))
    stops[2] = at2 + (((read2 & six) + uint64(7)) >> uint64(3))
    stops[3] = at3 + (((read3 & six) + uint64(7)) >> uint64(3))
    return stops


@compiled
def _refill(data: Any, at: Any, read: Any, last: Any) -> Any:
    """Step over whole bytes that were read, but not beyond ``last``; 57 bits or more that were not."""
    read &= uint64(63)
    at = min(at + (read >> uint64(3)), last)
    read &= uint64(7)
    return at, read, _load(data, at) >> read


@compiled
def _load(data: Any, at: Any) -> Any:
    """8 little-endian bytes: one load, once compiled."""
    low = uint64(data[at]) | uint64(data[at + uint64(1)]) << uint64(8)
    low |= uint64(data[at + uint64(2)]) << uint64(16) | uint64(data[at + uint64(3)]) << uint64(24)
    high = uint64(data[at + uint64(4)]) | uint64(data[at + uint64(5)]) << uint64(8)
    high |= uint64(data[at + uint64(6)]) << uint64(16) | uint64(data[at + uint64(7)]) << uint64(24)
    return low | high << uint64(32)


@compiled
def _merge(entries: Any, bias: Any, octave: Any, low_bits: Any, out: Any) -> None:
    """One row: exponents and signs from table entries, bias and octave, the lowest 6 bits as they are."""
    for c in range(out.shape[0]):
        entry = entries[c]
        coded = uint16((entry & uint16(0x8FC0)) + bias[c] + octave)
        out[c] = coded if (entry & uint16(0x4000)) == 0 else entry & uint16(0x8040)
    quarter = out.shape[0] // 4
    even, odd, high = low_bits[:quarter], low_bits[quarter : 2 * quarter], low_bits[2 * quarter :]
    first, second, third, fourth = out[:quarter], out[quarter : 2 * quarter], out[2 * quarter :], out[3 * quarter :]
    for i in range(quarter):
        first[i] |= uint16(even[i] & uint8(15)) | uint16(high[i] & uint8(3)) << uint16(4)
    for i in range(quarter):
        second[i] |= uint16(odd[i] & uint8(15)) | uint16(high[i] & uint8(12)) << uint16(2)
    for i in range(quarter):
        third[i] |= uint16(even[i] >> uint8(4)) | uint16(high[i] & uint8(48))
    for i in range(quarter):
        fourth[i] |= uint16(odd[i] >> uint8(4)) | uint16(high[i] & uint8(192)) >> uint16(2)
