"""Places that a job names: local folders and URLs, read strictly, and compared part by part with what is allowed.

Only one spelling of a place is taken. Whatever could mean another place to some library on the way to the storage
(``..``, doubled slashes, ``%2e``, ``file://``, ``~``, ``$HOME``, chains with ``::``, look-alike letters) is refused
with the reason, never repaired. Of local places the links are looked at as well, see ``deploy.service.links``.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

LONGEST = 2048
_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "memory": "memory"}
_WILD = frozenset("*?[]")
_REFUSED = frozenset('\\%${}#|<>"`') | _WILD


@dataclass(frozen=True)
class Place:
    """An absolute local path or a URL, without any part that needs interpretation."""

    scheme: str
    """``s3``, ``gs``, ``memory``; empty: local."""
    parts: tuple[str, ...]
    """Of a URL the bucket is the first; none: the root of the file system."""

    def __str__(self) -> str:
        return f"{self.scheme}://{'/'.join(self.parts)}" if self.scheme else f"/{'/'.join(self.parts)}"

    @property
    def is_local(self) -> bool:
        """A path of the file system."""
        return not self.scheme

    @property
    def fixed(self) -> Place:
        """The parts before the first wildcard."""
        count = next((index for index, part in enumerate(self.parts) if _WILD & set(part)), len(self.parts))
        return Place(self.scheme, self.parts[:count])

    @property
    def parent(self) -> Place:
        """One part less."""
        return Place(self.scheme, self.parts[:-1])

    def is_in(self, other: Place) -> bool:
        """It is that place, or below it."""
        return self.scheme == other.scheme and self.parts[: len(other.parts)] == other.parts

    def is_below(self, other: Place) -> bool:
        """It is below that place, so that what lies beside it is still in there."""
        return self.is_in(other) and len(self.parts) > len(other.parts)


def read_place(text: str, *, wildcards: bool = False) -> Place:
    """The place that a text names; with ``wildcards``, ``*``, ``?`` and ``[...]`` may be in it.

    Raises:
        ValueError: it is not spelled in the one way that is taken; the message is a reason, to stand behind the text.
    """
    if not text or len(text) > LONGEST:
        raise ValueError(f"has {len(text):,} letters, expected 1 to {LONGEST:,}")
    _require_plain_letters(text, _REFUSED - _WILD if wildcards else _REFUSED)
    scheme, rest = _split(text)
    rest = rest.removesuffix("/")
    parts = tuple(rest.split("/")) if rest else ()
    if scheme and not parts:
        raise ValueError("names no bucket")
    for part in parts:
        _require_plain_part(part)
    return Place(scheme, parts)


def _split(text: str) -> tuple[str, str]:
    scheme, separator, rest = text.partition("://")
    if separator and scheme in _SCHEMES:
        return _SCHEMES[scheme], rest
    if text.startswith("/"):
        return "", text[1:]
    if separator and scheme.lower() in {"file", "local"}:
        raise ValueError("is a URL of a local file; write the path itself, as /data/corpus")
    if separator:
        raise ValueError(f"has the scheme {scheme!r}; expected an absolute path, s3://, gs:// or memory://")
    raise ValueError("is no absolute path and no URL: a relative one would mean another folder in each process")


def _require_plain_letters(text: str, refused: frozenset[str]) -> None:
    for letter in text:
        kind = unicodedata.category(letter)
        if letter in refused or kind[0] == "C" or (kind[0] == "Z" and letter != " "):
            raise ValueError(f"holds {letter!a}, which is not taken in names of places")
    if unicodedata.normalize("NFKC", text) != text:
        raise ValueError("holds letters that look like others; write them in their plain form (Unicode NFKC)")
    if "::" in text:
        raise ValueError("chains file systems with '::'; name one place")


def _require_plain_part(part: str) -> None:
    if not part:
        raise ValueError("has doubled slashes")
    if part.strip(" ") != part:
        raise ValueError(f"has the part {part!r} with a space at an end")
    if part.endswith(".") or part.startswith("~"):
        raise ValueError(f"has the part {part!r}; '.', '..', names that end in a dot or begin with '~' are not taken")
