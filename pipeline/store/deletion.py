"""Deleting a store: whole, or recognisably on the way, and nothing that is not the store's.

1. An exclusive lease: no job writes meanwhile.
2. ``deleting.json`` says what is happening; from here on nobody opens the store for writing. Only then the pin is
   looked at (for the second time), so that a pin set at the same moment is seen here, or sees the deletion and fails.
3. The manifest goes, and with it the readers: to them the store is no longer complete.
4. Every other object of the store goes, ``zarr.json`` last among them.
5. The lease ends, ``deleting.json`` goes, and of a local store the folders that are empty now.

Killed anywhere, what is left has ``deleting.json`` and the same call finishes it. Only keys that writers make are
deleted: what people put beside them stays, and is counted.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.store.documents import sealed, to_bytes
from pipeline.store.layout import MANIFEST, ROOT, read_record
from pipeline.store.leases import held, lease_key, this_process
from pipeline.store.ledger import in_order
from pipeline.store.objects import Objects, is_partial
from pipeline.store.retention import DELETING, LAST_USE, RETENTION, read_deletion, read_retention
from schemas.errors import BusyError
from schemas.retention import Deletion

FOLDERS = ("activations", "scales", "tokens", "comoments", "covariances", "passes", "ledger", "log", "leases")
"""Folders of a store's root in which writers write."""

_OWN = re.compile(
    r"(activations|scales)/zarr\.json"
    r"|(activations|scales)/[^/]+/((zarr|array)\.json|c/\d+(/0)?|\d+\.arrow)"
    r"|tokens/\d{8,}\.parquet|(comoments|covariances)/.+"
    r"|passes/[0-9a-f]{16}\.json|ledger/[0-9a-f]{16}/\d{8,}\.json|log/\d{8,}\.json|leases/[^/]+\.json"
)
_DOCUMENTS = (MANIFEST, RETENTION, LAST_USE)


@dataclass(frozen=True)
class Deleted:
    """What a deletion did."""

    num_objects: int
    """Objects of the store that are gone."""
    size_bytes: int
    """Their length."""
    num_kept: int
    """Objects below the store's folder that no writer of stores makes; they are still there."""


def own_sizes(objects: Objects) -> dict[str, int]:
    """key -> length in bytes of every object of the store, what interrupted writes left included; by one listing."""
    sizes = {**objects.sizes(), **objects.partials()}
    return {key: size for key, size in sizes.items() if _is_own(key)}


def delete_store(url: str, *, reason: str) -> Deleted:
    """Delete the store, or finish deleting it.

    Raises:
        MissingError: there is no store. MismatchError, CorruptionError: what is there is not known to be one.
        BusyError: a job holds a lease on it, or it is pinned; nothing is deleted.
    """
    objects = Objects(url)
    begun = read_deletion(objects)
    fingerprint = begun.fingerprint if begun else read_record(objects).fingerprint
    if not begun:
        _require_unpinned(objects)
    with held(objects, "prune", is_exclusive=True) as lease:
        deletion = Deletion(fingerprint=fingerprint, reason=reason, owner=this_process(), started=time.time())
        objects.create(DELETING, to_bytes(sealed(deletion)))
        if not begun or objects.exists(MANIFEST):
            # Nothing is gone yet, so the store can still be given back.
            try:
                _require_unpinned(objects)
            except BusyError:
                objects.delete(DELETING)
                raise
        objects.delete(MANIFEST)
        sizes = own_sizes(objects)
        last = [ROOT, DELETING, lease_key(lease.job)]
        for _ in in_order(objects, objects.delete, [key for key in sizes if key not in last]):
            pass
        objects.delete(ROOT)
        objects.delete(RETENTION)  # again: a pin that came too late may have written it after the listing
    objects.delete(DELETING)
    gone = {key: size for key, size in sizes.items() if key != lease_key(lease.job)}
    num_kept = len([key for key in objects.sizes() if not _is_own(key)])
    _remove_empty_folders(objects)
    return Deleted(len(gone), sum(gone.values()), num_kept)


def _require_unpinned(objects: Objects) -> None:
    retention = read_retention(objects)
    if retention.is_pinned:
        raise BusyError(
            f"the store at {objects.url} is pinned by {retention.set_by}: `headworks store unpin {objects.url}` first"
        )


def _is_own(key: str) -> bool:
    if is_partial(key):
        return "/" not in key or key.partition("/")[0] in FOLDERS
    return key in (ROOT, DELETING, *_DOCUMENTS) or _OWN.fullmatch(key) is not None


def _remove_empty_folders(objects: Objects) -> None:
    """Of a local store. A folder that holds anything stays, and those above it."""
    if not objects.is_local:
        return
    root = Path(objects.url)
    for folder, _, _ in os.walk(root, topdown=False):
        if folder == str(root) or Path(folder).relative_to(root).parts[0] in FOLDERS:
            with suppress(OSError):
                Path(folder).rmdir()
