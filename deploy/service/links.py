"""Symbolic links on storage that the service sees: does a place, with all that lies in it, stay where it may be?

What is looked at is what is there now. Somebody who may write to the folder by other ways than a job can put a link
there later; ``docs/operations.md`` says what is to be done about that.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from deploy.service.places import Place

MOST_ENTRIES = 200_000
"""Files and folders that are looked at for one job; 20,000 take 0.03 s on a local disk that knows them already."""

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR}


@dataclass
class Looked:
    """What was looked at for one job, so that no folder is twice, and not too many are."""

    count: int = 0
    """Files and folders."""
    seen: set[tuple[tuple[str, ...], str, int]] = field(default_factory=set)
    """Allowed folders, folder, levels below it."""
    roots: dict[tuple[Place, ...], list[str]] = field(default_factory=dict)
    """Allowed places -> their folders without links."""


def require_within(
    place: Place, allowed: Sequence[Place], *, for_writing: bool = False, looked: Looked | None = None
) -> None:
    """Refuse a local place that leads out of the allowed local places, by itself or by a link in it.

    ``for_writing``: what lies beside it under its name, and ``tokens`` beside it, is looked at too, since jobs write
    there. ``looked``: of the same job.

    Raises:
        ValueError: it leads out, cannot be looked at, or has too much in it; the message is a reason.
    """
    looked = looked or Looked()
    try:
        known = tuple(allowed)
        roots = looked.roots[known] = looked.roots.get(known) or _roots(allowed)
        _require_within(place, roots, looked, for_writing=for_writing)
    except ValueError:
        # What was seen on the way was not seen to the end.
        looked.seen.clear()
        raise


def _require_within(place: Place, roots: list[str], looked: Looked, *, for_writing: bool) -> None:
    fixed = place.fixed
    start = _real(str(fixed), roots)
    if for_writing:
        _real(str(fixed.parent), roots)
        for beside in _beside(fixed):
            _follow(_real(beside, roots), -1, roots, looked)
    wild = place.parts[len(fixed.parts) :]
    _follow(start, -1 if not wild or any("**" in part for part in wild) else len(wild), roots, looked)


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


def _follow(start: str, depth: int, roots: list[str], looked: Looked) -> None:
    """Look at every link in a folder, and in the folders that they lead to; ``depth`` levels deep, -1: all of them."""
    waiting = [(start, depth)]
    while waiting:
        folder, levels = waiting.pop()
        key = (tuple(roots), folder, levels)
        if levels == 0 or key in looked.seen or not os.path.isdir(folder):
            continue
        looked.seen.add(key)
        below = max(levels - 1, -1)
        for entry in _entries(folder):
            looked.count += 1
            if looked.count > MOST_ENTRIES:
                raise ValueError(
                    f"brings the job to more than {MOST_ENTRIES:,} files, too many to look for links; name smaller "
                    "parts, or, if nobody can make links there, have the operator say `local_links: trusted`"
                )
            if entry.is_symlink():
                waiting.append((_real(entry.path, roots), below))
            elif entry.is_dir(follow_symlinks=False):
                waiting.append((entry.path, below))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise ValueError(f"cannot be looked at: {error.strerror} at {folder}") from error
