"""The lossless codec of rows that are mostly exact zeros, as the neurons behind a ReLU are.

A chunk becomes a bit for each word, and the words that are not zero.

Zero means all bits zero: a negative zero is a word like any other, so any bits come back. A chunk that would not become
smaller is kept as it is. docs/store-format.md, "Codec sparse", describes every byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from schemas.errors import CorruptionError

if TYPE_CHECKING:
    from pipeline.store.words import Words

Bytes = npt.NDArray[np.uint8]

VERSION = 1
_PLAIN, _SPARSE = 0, 1
_MARK = 2
"""Bytes of version and kind, all that precedes the words or the bits."""
_BITS: dict[int, type[np.unsignedinteger[Any]]] = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def encode(words: Words) -> Bytes:
    """Words [T, D] of 1, 2 or 4 bytes -> payload: at most 2 bytes more than the words. Equal words give equal bytes."""
    flat = np.ascontiguousarray(words, dtype=words.dtype.newbyteorder("<")).reshape(-1)
    size = flat.itemsize
    mask_bytes = -(-flat.size // 8)
    mask, kept = np.empty(mask_bytes, dtype=np.uint8), np.empty(flat.size, dtype=_BITS[size])
    count = _split(flat.view(_BITS[size]), mask, kept) if flat.size else 0
    if mask_bytes + count * size >= flat.size * size:
        return _joined(_PLAIN, flat.view(np.uint8))
    return _joined(_SPARSE, mask, kept[:count].view(np.uint8))


def decode(payload: Bytes, num_rows: int, width: int, dtype: np.dtype[Any]) -> Words:
    """Payload -> words [T = num_rows, D = width] of ``dtype``, owned by the caller.

    Raises:
        CorruptionError: these are not the bytes of such an array; no memory beyond them is touched. A flipped bit of a
            word is not noticed here: the store has checksums for that.
    """
    _require(len(payload) >= _MARK, f"at least {_MARK} bytes", len(payload))
    _require(payload[0] == VERSION, f"version {VERSION}", payload[0])
    num_words, little = num_rows * width, dtype.newbyteorder("<")
    if payload[1] == _PLAIN:
        size = _MARK + num_words * dtype.itemsize
        _require(len(payload) == size, f"{size} bytes", len(payload))
        return payload[_MARK:].copy().view(little).reshape(num_rows, width)
    _require(payload[1] == _SPARSE, f"kind {_PLAIN} or {_SPARSE}", payload[1])
    end = _MARK + -(-num_words // 8)
    _require(len(payload) >= end, f"at least {end} bytes", len(payload))
    mask = np.ascontiguousarray(payload[_MARK:end])
    count = int(np.bitwise_count(mask).sum(dtype=np.int64))
    size = end + count * dtype.itemsize
    _require(len(payload) == size, f"{size} bytes for {count} words", len(payload))
    spare = num_words % 8
    _require(not spare or mask[-1] >> spare == 0, f"no bit behind word {num_words}", "some")
    kept = np.zeros(count + 1, dtype=_BITS[dtype.itemsize])
    kept[:count].view(np.uint8)[:] = payload[end:]  # copied: words may lie at odd addresses in the payload
    out = np.zeros(num_words, dtype=_BITS[dtype.itemsize])
    if count:
        _join(mask, kept, out)
    return out.view(little).reshape(num_rows, width)


def _split(words: Any, mask: Bytes, kept: Any) -> int:
    from pipeline.store import sparse_loops  # Numba takes longer to import than all the rest

    return int(sparse_loops.split(words, mask, kept))


def _join(mask: Bytes, kept: Any, out: Any) -> None:
    from pipeline.store import sparse_loops

    sparse_loops.join(mask, kept, out)


def _joined(kind: int, *parts: Bytes) -> Bytes:
    return np.concatenate([np.array([VERSION, kind], dtype=np.uint8), *parts])


def _require(holds: bool | np.bool_, expected: str, got: object) -> None:
    if not holds:
        raise CorruptionError(f"sparse codec: expected {expected}, got {got}")
