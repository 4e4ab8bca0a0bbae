"""Symbolic links on storage that the service sees: does a place, with all that lies in it, stay where it may be?

What is looked at is what is there now. Somebody who may write to the folder by other ways than a job can put a link
there later; ``docs/operations.md`` says what is to be done about that.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from deploy.service.places import Place

MOST_ENTRIES = 200_000
"""Files and folders of one place that are looked at; 20,000 take 0.03 s on a local disk that knows them already."""

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR}


def require_within(place: Place, allowed: Sequence[Place], *, for_writing: bool = False) -> None:
    """Refuse a local place that leads out of the allowed local places, by itself or by a link in it.

    ``for_writing``: what lies beside it under its name, and ``tokens`` beside it, is looked at too, since jobs write
    there.

    Raises:
        ValueError: it leads out, cannot be looked at, or has too much in it; the message is a reason.
    """
    roots = _roots(allowed)
    fixed = place.fixed
    start = _real(str(fixed), roots)
    if for_writing:
        _real(str(fixed.parent), roots)
        for beside in _beside(fixed):
            for found in _leads(_real(beside, roots), depth=-1):
                _real(found, roots)
    wild = place.parts[len(fixed.parts) :]
    depth = -1 if not wild or any("**" in part for part in wild) else len(wild)
    for found in _leads(start, depth):
        _real(found, roots)


def _roots(allowed: Sequence[Place]) -> list[str]:
    """The allowed folders without links in their own paths.

    Raises:
        ValueError: none of them is there.
    """
    local = [str(place) for place in allowed if place.is_local]
    roots = [os.path.realpath(path) for path in local if os.path.isdir(path)]
    if not roots:
        raise ValueError(
            f"cannot be looked at: {', '.join(local)} is not there on the service's machine. Mount it there, or, if "
            "nobody can make links on it, say `local_links: trusted` in the policy"
        )
    return roots


def _real(path: str, roots: list[str]) -> str:
    """The path without links."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise ValueError(f"cannot be looked at: {error.strerror} at {path}") from error
    real = os.path.realpath(path)
    if not any(_is_in(real, root) for root in roots):
        raise ValueError(f"leads through a link at {path} to another place, outside of what is allowed")
    return real


def _is_in(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _beside(place: Place) -> Iterator[str]:
    """Entries beside a place that a job with that output writes to; the place itself is not among them."""
    parent = str(place.parent)
    name = place.parts[-1]
    for entry in _entries(parent) if os.path.isdir(parent) else ():
        if entry.name != name and (entry.name == "tokens" or entry.name.startswith(f"{name}.")):
            yield entry.path


def _leads(start: str, depth: int) -> Iterator[str]:
    """Every link in a folder, and in the folders that they lead to; ``depth`` levels deep, -1: all of them.

    The caller looks at each link before it takes the next, so no link is followed that leads out.
    """
    waiting = [(start, depth)]
    seen: set[tuple[str, int]] = set()
    count = 0
    while waiting:
        folder, levels = waiting.pop()
        if levels == 0 or (folder, levels) in seen or not os.path.isdir(folder):
            continue
        seen.add((folder, levels))
        below = max(levels - 1, -1)
        for entry in _entries(folder):
            count += 1
            if count > MOST_ENTRIES:
                raise ValueError(
                    f"has more than {MOST_ENTRIES:,} files in it, too many to look for links; name a smaller part, "
                    "or, if nobody can make links there, have the operator say `local_links: trusted`"
                )
            if entry.is_symlink():
                yield entry.path
                waiting.append((os.path.realpath(entry.path), below))
            elif entry.is_dir(follow_symlinks=False):
                waiting.append((entry.path, below))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise ValueError(f"cannot be looked at: {error.strerror} at {folder}") from error
