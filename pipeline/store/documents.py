"""The store's JSON documents: canonical JSON that carries the CRC-32C of its own content.

A document is a pydantic record plus one member, ``crc32c``: the checksum of the canonical JSON (sorted keys, no
spaces, UTF-8) of everything else. Any JSON tool reads it; a reader that checks it notices a single flipped bit.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.store.checksums import crc32c_hex
from schemas.errors import CorruptionError
from schemas.fields import Spec
from schemas.fingerprint import canonical_json

Record = TypeVar("Record", bound=Spec)

_SEAL = "crc32c"


def sealed(record: Spec) -> dict[str, Any]:
    """The record as a JSON-able tree with its checksum."""
    # Through JSON text, because integer keys become text there and the checksum is over what a reader sees.
    facts: dict[str, Any] = json.loads(record.model_dump_json())
    return {**facts, _SEAL: crc32c_hex(canonical_json(facts))}


def to_bytes(facts: dict[str, Any]) -> bytes:
    """What is stored."""
    return canonical_json(facts) + b"\n"


def parse(data: bytes, where: str) -> dict[str, Any]:
    """The tree of a JSON object.

    Raises:
        CorruptionError: no JSON, or no object; names ``where``.
    """
    try:
        facts = json.loads(data)
    except ValueError as exc:
        raise CorruptionError(f"{where}: expected JSON, got {len(data)} bytes that are not: {exc}") from exc
    if not isinstance(facts, dict):
        raise CorruptionError(f"{where}: expected a JSON object, got {type(facts).__name__}")
    return facts


def unsealed(facts: dict[str, Any], kind: type[Record], where: str) -> Record:
    """Check the seal and validate.

    Raises:
        CorruptionError: the checksum differs, or the fields are not those of ``kind``; names ``where``.
    """
    rest = {name: value for name, value in facts.items() if name != _SEAL}
    got = crc32c_hex(canonical_json(rest))
    if facts.get(_SEAL) != got:
        raise CorruptionError(f"{where}: CRC-32C of its content: expected {facts.get(_SEAL)!r}, got {got!r}")
    try:
        return kind.model_validate(rest)
    except ValidationError as exc:
        raise CorruptionError(f"{where}: expected the fields of {kind.__name__}, got: {exc}") from exc
