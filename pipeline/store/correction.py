"""Mending one flipped bit of a sealed document, with the checksum that it carries.

A CRC is linear: flipping bit b of byte i changes it by a number that depends on b and on how many bytes follow. So the
difference between the stored checksum and that of what is there names the bit, and no other single bit of a document
below 2^31 bits has the same. What comes out is believed only if it is, to the byte, a sound document of its kind that
differs from what was found in that one bit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from pipeline.store.checksums import crc32c
from pipeline.store.documents import Record, sealed
from schemas.fingerprint import canonical_json

_SEAL = np.frombuffer(b'"crc32c":"........",', dtype=np.uint8)
_IS_MARK = np.not_equal(_SEAL, ord("."))
_HEXADECIMAL = re.compile(rb"[0-9a-f]{8}")
_DIGITS = slice(10, 18)
_SEALS_TRIED = 8
"""The document's own comes early in canonical JSON; the same words occur inside of it too."""


def corrected(data: bytes, kind: type[Record]) -> Record | None:
    """The record of which ``data``, the canonical JSON of ``sealed(record)``, differs in one bit or none; else None."""
    for candidate in _candidates(data):
        record = _validated(candidate, kind)
        if record is not None and _bits_apart(canonical_json(sealed(record)), data) <= 1:
            return record
    return None


def _candidates(data: bytes) -> Iterator[bytes]:
    yield data  # the flipped bit may lie in the checksum itself, or nowhere
    for start in _seals(np.frombuffer(data, dtype=np.uint8)):
        content = data[:start] + data[start + len(_SEAL) :]
        yield content
        digits = data[start : start + len(_SEAL)][_DIGITS]
        place = _flipped(content, crc32c(content) ^ int(digits, 16)) if _HEXADECIMAL.fullmatch(digits) else None
        if place is not None:
            index, bit = place
            mended = bytearray(content)
            mended[index] ^= 1 << bit
            yield bytes(mended)


def _seals(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    """Where the member that holds a checksum begins, one flipped bit in it allowed."""
    if len(data) < len(_SEAL):
        return np.empty(0, dtype=np.intp)
    windows = np.lib.stride_tricks.sliding_window_view(data, len(_SEAL))[:, _IS_MARK]
    wrong = np.bitwise_count(windows ^ _SEAL[_IS_MARK]).sum(axis=1)
    return np.flatnonzero(wrong <= 1)[:_SEALS_TRIED]


def _flipped(content: bytes, difference: int) -> tuple[int, int] | None:
    """(byte, bit) whose flip changes the checksum of ``content`` by ``difference``."""
    changes = _TABLE[1 << np.arange(8)]
    for index in range(len(content) - 1, -1, -1):
        found = np.flatnonzero(changes == difference)
        if len(found):
            return index, int(found[0])
        changes = (changes >> np.uint32(8)) ^ _TABLE[changes & np.uint32(0xFF)]
    return None


def _validated(data: bytes, kind: type[Record]) -> Record | None:
    try:
        facts: Any = json.loads(data)
        if isinstance(facts, dict):
            return kind.model_validate({name: facts[name] for name in facts if name in kind.model_fields})
    except (ValueError, ValidationError):
        pass
    return None


def _bits_apart(one: bytes, other: bytes) -> float:
    if len(one) != len(other):
        return float("inf")
    return int.from_bytes(bytes(a ^ b for a, b in zip(one, other, strict=True)), "little").bit_count()


def _table() -> npt.NDArray[np.uint32]:
    """[256]: what one byte does to the reflected CRC-32C."""
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = (values >> np.uint32(1)) ^ np.where(values & np.uint32(1), np.uint32(0x82F63B78), np.uint32(0))
    return values


_TABLE = _table()
