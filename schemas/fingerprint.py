"""Fingerprints: SHA-256 over canonical JSON of the facts that decide the bytes of an artefact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.errors import MismatchError


def canonical_json(facts: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8, no NaN: equal facts give equal bytes on any machine."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def fingerprint(facts: Mapping[str, Any]) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(facts)).hexdigest()


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """``(field path, ours, theirs)`` for each leaf in which two fact trees differ."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in sorted({*ours, *theirs}):
            yield from differences(ours.get(key), theirs.get(key), f"{path}.{key}" if path else str(key))
    elif ours != theirs:
        yield path, ours, theirs


def require_equal(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, where: str, remedy: str) -> None:
    """Refuse two identities that differ.

    Raises:
        MismatchError: naming every field that differs, what this job has and what ``where`` has.
    """
    found = list(differences(ours, theirs))
    if not found:
        return
    lines = [f"  {path}: this job has {mine!r}, {where} has {other!r}" for path, mine, other in found[:8]]
    if len(found) > len(lines):
        lines.append(f"  and {len(found) - len(lines)} more fields")
    raise MismatchError(f"{where} was made from other facts than this job:\n" + "\n".join(lines) + f"\n{remedy}")
