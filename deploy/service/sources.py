"""Where models and datasets may come from: local folders, names on the Hub, files in packages; and what arguments say.

Names are compared part by part, so that ``hub:gpt*`` is no leave for ``gpt-x/anything``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from deploy.service.places import read_place

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*(/[A-Za-z0-9][A-Za-z0-9_.\-]*)?", re.ASCII)
_IN_PACKAGE = re.compile(r"[A-Za-z0-9_.]+(/[A-Za-z0-9_\-][A-Za-z0-9_.\-]*)+", re.ASCII)
_PATTERN = re.compile(r"(hub|package):[A-Za-z0-9_.\-*?]+(/[A-Za-z0-9_.\-*?]+)*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-+]*(/[A-Za-z0-9][A-Za-z0-9._\-+]*)*", re.ASCII)
_OF_PLACES = frozenset("/\\~$%{")


def checked_source(text: str) -> str:
    """A source of a policy as it is.

    Raises:
        ValueError: it is none.
    """
    if text.startswith("/"):
        return str(read_place(text))
    if _PATTERN.fullmatch(text):
        return text
    raise ValueError(f"a source is a local folder, hub:OWNER/NAME or package:PACKAGE/FILE; got {text!r}")


def is_local(source: str) -> bool:
    """Whether a source of a policy is a local folder."""
    return source.startswith("/")


def is_allowed(text: str, allowed: Sequence[str]) -> bool:
    """Whether a name on the Hub, or ``package:PACKAGE/FILE``, matches one of the sources."""
    if text.startswith("package:"):
        name, kind, form = text.removeprefix("package:"), "package:", _IN_PACKAGE
    else:
        name, kind, form = text, "hub:", _HUB_NAME
    if not form.fullmatch(name) or ".." in name:
        return False
    patterns = [source.removeprefix(kind) for source in allowed if source.startswith(kind)]
    return any(_matches(name.split("/"), pattern.split("/")) for pattern in patterns)


def require_revision(text: str) -> None:
    """Refuse what is no branch, tag or commit of the repository's owners.

    Raises:
        ValueError: among others for ``refs/pr/N``, which anybody can make for any repository of the Hub.
    """
    if not _REVISION.fullmatch(text) or ".." in text or text.startswith("refs/") or len(text) > 200:
        raise ValueError(f"{text!r} is not taken: expected a branch, a tag or a commit, not a pull request or a path")


def unsafe_texts(value: object) -> Iterator[str]:
    """Texts in JSON values, keys included, that could name a place or something on the Hub."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from unsafe_texts(key)
            yield from unsafe_texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from unsafe_texts(item)
    elif isinstance(value, str) and (_OF_PLACES & set(value) or ".." in value or not value.isprintable()):
        yield value


def asks_for_remote_code(value: object) -> bool:
    """Whether JSON values have ``trust_remote_code`` in them, other than false."""
    if isinstance(value, Mapping):
        return any(
            (key == "trust_remote_code" and item is not False) or asks_for_remote_code(item)
            for key, item in value.items()
        )
    return isinstance(value, list | tuple) and any(asks_for_remote_code(item) for item in value)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))
