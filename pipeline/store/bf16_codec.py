"""The lossless codec of bfloat16 words [rows, channels]: any bits come back, activations take about 0.66 of their size.

The scale of activations varies by channel and by token, and given both, a word's exponent holds little news. So each
channel and each row gets a scale in quarter binades; their sum says which binade a word is expected in and which of
four code tables is used. Coded are together: how far the exponent is from there, whether the sign is the channel's
usual one, and the highest bit of the mantissa, by a Huffman code. The other 6 bits are kept as they are.
docs/store-format.md, "Codec bf16", describes every byte. ZipNN (arXiv 2411.05239) is the method that this refines.
"""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from schemas.errors import CorruptionError

if TYPE_CHECKING:
    from pipeline.store.words import Words

Bytes = npt.NDArray[np.uint8]

VERSION = 1
_PLAIN, _CODED = 0, 1
_HEAD = struct.Struct("<BBhII4I")
_MARK = 2
"""Bytes of version and kind, all that precedes plain words."""
_LENGTHS = 256
"""Bytes of the lengths of all codes, half a byte each."""
_PAD = 8
"""Zero bytes at the end, so that a decoder may read 8 bytes anywhere in a stream."""


def encode(words: Words) -> Bytes:
    """uint16 [T, D] -> payload: at most 2 bytes more than the words. Equal words give equal bytes."""
    num_rows = _rows_in_use(words)
    source = np.ascontiguousarray(words[:num_rows], dtype="<u2")
    if source.shape[1] % 4:
        source = np.pad(source, ((0, 0), (0, -source.shape[1] % 4)))
    if words.size > 0 and source.size < 2**32:
        coded = _coded(_frozen(source.view(np.uint16)))
        if len(coded) < _MARK + 2 * words.size:
            return coded
    plain = np.ascontiguousarray(words, dtype="<u2").reshape(-1).view(np.uint8)
    return np.concatenate([np.array([VERSION, _PLAIN], dtype=np.uint8), plain])


def decode(payload: Bytes, num_rows: int, width: int) -> Words:
    """Payload -> uint16 [T = num_rows, D = width], owned by the caller.

    Raises:
        CorruptionError: these are not the bytes of such an array. Not every flipped bit is noticed here: the store has
            checksums for that. But whatever the bytes are, no memory beyond them is touched.
    """
    _require(len(payload) >= _MARK, f"at least {_MARK} bytes", len(payload))
    _require(payload[0] == VERSION, f"version {VERSION}", payload[0])
    if payload[1] == _PLAIN:
        size = _MARK + 2 * num_rows * width
        _require(len(payload) == size, f"{size} bytes", len(payload))
        return payload[_MARK:].view("<u2").reshape(num_rows, width).astype(np.uint16)
    _require(payload[1] == _CODED, f"kind {_PLAIN} or {_CODED}", payload[1])
    _require(len(payload) >= _HEAD.size, f"at least {_HEAD.size} bytes", len(payload))
    out = np.empty((num_rows, width + -width % 4), dtype=np.uint16)
    _decode_into(out, _frozen(np.ascontiguousarray(payload)))
    return out if out.shape[1] == width else np.ascontiguousarray(out[:, :width])


def _rows_in_use(words: Words) -> int:
    """Rows up to the last that holds anything but zero words; the first in any case."""
    last = len(words) - 1
    while last > 0 and not words[last].any():
        last -= 1
    return last + 1


def _coded(words: Words) -> Bytes:
    from pipeline.store import bf16_encoding, bf16_tables  # Numba takes longer to import than all the rest.

    origin, rows, channels = bf16_encoding.scales_of(words)
    offsets, bias = bf16_tables.channel_tables(channels, bf16_tables.SYMBOLS)
    places = np.empty(words.shape, dtype=np.uint16)
    num_exceptions = bf16_encoding.place_words(words, origin, rows, offsets, bias, places)
    positions, exponents = bf16_encoding.exceptions_of(words, places, num_exceptions)
    lengths, codes, sizes = bf16_tables.prefix_codes(bf16_encoding.count_places(places))
    head = _HEAD.pack(VERSION, _CODED, origin, len(words), num_exceptions, *sizes.tolist())
    packed = (lengths[:, ::2] | lengths[:, 1::2] << 4).reshape(-1)
    before = [np.frombuffer(head, np.uint8), channels, rows, packed, positions.astype("<u4").view(np.uint8), exponents]
    begin = sum(map(len, before))
    low_begin = begin + int(sizes.sum())
    out = np.empty(low_begin + words.size // 4 * 3 + _PAD, dtype=np.uint8)
    np.concatenate(before, out=out[:begin])
    spaced, at = bf16_encoding.write_streams(places, codes.reshape(-1), sizes), 0
    for size in sizes.tolist():
        out[begin : begin + size] = spaced[at : at + size]
        begin, at = begin + size, at + size + 8
    bf16_encoding.pack_low_bits(words, out[low_begin:-_PAD].reshape(len(words), -1))
    out[-_PAD:] = 0
    return out


def _decode_into(out: Words, payload: Bytes) -> None:
    from pipeline.store import bf16_decoding, bf16_tables

    _, _, origin, num_rows, num_exceptions, *sizes = _HEAD.unpack_from(payload.data)
    width = out.shape[1]
    _require(num_rows <= len(out), f"at most {len(out)} rows", num_rows)
    low_size = num_rows * (width // 4 * 3)
    parts = (_HEAD.size, width, num_rows, _LENGTHS, 4 * num_exceptions, num_exceptions, sum(sizes), low_size, _PAD)
    _require(len(payload) == sum(parts), f"{sum(parts)} bytes as its header says", len(payload))
    ends = [*itertools.accumulate(parts)]
    _, channels, rows, packed, positions, exponents, _, low, _ = (
        payload[end - size : end] for size, end in zip(parts, ends, strict=True)
    )
    table = np.zeros(bf16_tables.CLASSES << bf16_tables.LONGEST, dtype=np.uint16)
    _require(bf16_tables.fill_table(packed, table), "complete prefix codes", "other code lengths")
    offsets, bias = bf16_tables.channel_tables(channels, 1 << bf16_tables.LONGEST)
    starts = np.array([ends[5], *sizes[:-1]], dtype=np.int64).cumsum()
    low_bits = low.reshape(num_rows, width // 4 * 3)
    stops = bf16_decoding.read_rows(payload, starts, origin, rows, offsets, bias, table, low_bits, out[:num_rows])
    _require((stops == starts + sizes).all(), "codes that end where their streams do", "others")
    out[num_rows:] = 0
    if num_exceptions:
        places = positions.view("<u4")
        _require((places < num_rows * width).all(), f"exceptions before place {num_rows * width}", places.max())
        flat = out.reshape(-1)
        flat[places] = flat[places] & 0x807F | exponents.astype(np.uint16) << 7


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A view without the right to write: the loops are compiled once more for arrays that have it."""
    view = array.view()
    view.flags.writeable = False
    return view


def _require(holds: bool | np.bool_, expected: str, got: object) -> None:
    if not holds:
        raise CorruptionError(f"bf16 codec: expected {expected}, got {got}")
