"""Does it fit: what will be written against the free space of a local disk, and against a quota."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.store.objects import Objects
from schemas.errors import ResourceError
from schemas.fields import about_bytes


def disk_of(objects: Objects) -> tuple[int, Path] | None:
    """``(device number, nearest folder that exists)`` of a local place, None of a remote one."""
    if not objects.is_local:
        return None
    folder = next(path for path in (Path(objects.url), *Path(objects.url).parents) if path.exists())
    return folder.stat().st_dev, folder


def require_free(objects: Objects, needed: int, what: str) -> None:
    """Raises ResourceError where the disk of a local place has less than ``needed`` bytes free for ``what``."""
    disk = disk_of(objects)
    if disk is None:
        return
    free = shutil.disk_usage(disk[1]).free
    if needed > free:
        raise ResourceError(
            f"{objects.url} needs {about_bytes(needed)} for {what}, but the disk has {about_bytes(free)} free. "
            "Lower tokens.max_tokens, take fewer hook points, or choose another output."
        )


def require_quota(objects: Objects, needed: int, quota: int, what: str) -> None:
    """Raises ResourceError where the store would take more than ``quota`` bytes (0: no limit) with what it has."""
    if not quota:
        return
    there = sum(objects.sizes().values())
    if there + needed > quota:
        raise ResourceError(
            f"{objects.url} would take {about_bytes(there + needed)} ({about_bytes(there)} are there, "
            f"{about_bytes(needed)} for {what}), but retention.quota is {about_bytes(quota)}. Raise it, lower "
            "tokens.max_tokens, or take fewer hook points."
        )
