"""A second decoder of the bf16 codec, from docs/store-format.md alone: bit by bit, with no thought of speed."""

from __future__ import annotations

import struct

import numpy as np


def decode(payload: bytes, num_rows: int, width: int) -> np.ndarray:
    assert payload[0] == 1
    if payload[1] == 0:
        return np.frombuffer(payload, "<u2", offset=2).reshape(num_rows, width)
    origin, rows_in_use, num_exceptions, *sizes = struct.unpack_from("<hII4I", payload, 2)
    columns = -(-width // 4) * 4
    at = 28

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        return payload[at - size : at]

    channels, rows, packed = take(columns), take(rows_in_use), take(256)
    positions = struct.unpack(f"<{num_exceptions}I", take(4 * num_exceptions))
    exponents = take(num_exceptions)
    streams = [bits_of(take(size)) for size in sizes]
    low = [take(3 * columns // 4) for _ in range(rows_in_use)]
    assert payload[at:] == bytes(8)
    lengths = [value for byte in packed for value in (byte & 15, byte >> 4)]
    codes = [codes_of(lengths[128 * k : 128 * k + 128]) for k in range(4)]
    words = np.zeros((num_rows, columns), np.uint16)
    for r in range(rows_in_use):
        for c in range(columns):
            scale = origin + rows[r] + channels[c] % 128
            code = ""
            while code not in codes[scale % 4]:
                code += next(streams[c % 4])
            symbol = codes[scale % 4][code]
            step, sign, mantissa = symbol >> 2, symbol >> 1 & 1, symbol & 1
            if step < 31:
                first = (scale // 4 - 20) * 128 + (channels[c] >> 7) * 32768 + step * 128 + sign * 32768
            else:
                first = sign * 32768
            words[r, c] = (first + mantissa * 64 + low_bits(low[r], c, columns // 4)) % 65536
    for position, exponent in zip(positions, exponents, strict=True):
        r, c = divmod(position, columns)
        words[r, c] = words[r, c] & 0x807F | exponent << 7
    return words[:, :width]


def bits_of(stream: bytes):  # type: ignore[no-untyped-def]
    return iter("".join(f"{byte:08b}"[::-1] for byte in stream))


def codes_of(lengths: list[int]) -> dict[str, int]:
    """Bits -> symbol."""
    codes, code = {}, 0
    for length in range(1, 12):
        for symbol in range(128):
            if lengths[symbol] == length:
                codes[f"{code:0{length}b}"] = symbol
                code += 1
        code *= 2
    return codes


def low_bits(row: bytes, c: int, quarter: int) -> int:
    part, i = divmod(c, quarter)
    nibble = row[part % 2 * quarter + i] >> (4 if part > 1 else 0) & 15
    return nibble | (row[2 * quarter + i] >> 2 * part & 3) << 4
