"""Making room: which stores go, in which order, until a quota holds.

1. Deletions that were begun are finished.
2. Stores that have expired go.
3. With a quota, complete stores go, the one that was used longest ago first, until what remains is within it. A store
   was used when a train or evaluate job last noted that it read it, or else when it was made.

Never deleted: a pinned store, one on which a job holds a lease, one that a job noted that it read within the grace
time, and what is not known to be a store. Partial stores go only when they have expired: the job that makes one may
be about to go on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.store.catalogue import StoreEntry, find_stores
from pipeline.store.deletion import delete_store, own_sizes
from pipeline.store.objects import Objects
from schemas.errors import BusyError
from schemas.fields import about_bytes

GRACE_S = 24 * 3600.0
"""Since its last noted use a store is taken to be in use; jobs that read it note that again every hour."""

Action = Literal["deleted", "kept", "skipped"]


@dataclass(frozen=True)
class Pruned:
    """What became of one store; of a rehearsal, what would."""

    url: str
    action: Action
    """``skipped``: it was its turn, but it may not go."""
    reason: str
    size_bytes: int
    """0 where nobody had to know."""


@dataclass(frozen=True)
class Pruning:
    """A whole run, in the order in which stores were looked at."""

    stores: list[Pruned]
    remaining_bytes: int
    """What the stores that are left take; 0 without a quota, which alone needs it."""
    is_within_quota: bool


def prune(
    urls: Iterable[str], *, quota_bytes: int | None = None, is_rehearsal: bool = False, grace_s: float = GRACE_S
) -> Pruning:
    """Delete what may go below the URLs. A rehearsal deletes nothing and says what would.

    Raises: as ``find_stores``; nothing is deleted then.
    """
    entries = [entry for entry in find_stores(urls) if entry.is_store]
    # Only a quota needs every store's size, which takes a listing of the whole store.
    sizes = {one.url: _size(one) for one in entries} if quota_bytes is not None else {}
    total = sum(sizes.values())
    done: list[Pruned] = []
    for entry, reason in _due(entries):
        done.append(_delete(entry, reason, sizes, is_rehearsal, grace_s))
        total -= sizes.get(entry.url, 0) if done[-1].action == "deleted" else 0
    looked_at = {one.url for one in done}
    for entry in sorted(entries, key=_last_used):
        if entry.url in looked_at:
            continue
        if quota_bytes is None or total <= quota_bytes or entry.state != "complete":
            done.append(Pruned(entry.url, "kept", _why_kept(entry), sizes.get(entry.url, 0)))
            continue
        over = f"{about_bytes(total - quota_bytes)} over the quota, used longest ago"
        done.append(_delete(entry, over, sizes, is_rehearsal, grace_s))
        total -= sizes[entry.url] if done[-1].action == "deleted" else 0
    return Pruning(done, total, quota_bytes is None or total <= quota_bytes)


def _due(entries: list[StoreEntry]) -> Iterator[tuple[StoreEntry, str]]:
    """Stores that go whatever the quota is, and why."""
    for entry in entries:
        if entry.state == "deleting":
            yield entry, f"its deletion ({entry.problem}) had been begun"
    for entry in sorted(entries, key=_last_used):
        if entry.state != "deleting" and 0 < entry.retention.expires <= time.time():
            yield entry, "expired"


def _last_used(entry: StoreEntry) -> tuple[float, str]:
    return max(entry.last_used_s or 0.0, entry.created_s or 0.0), entry.url


def _why_kept(entry: StoreEntry) -> str:
    if entry.retention.is_pinned:
        return "pinned"
    return "not complete" if entry.state == "partial" else "not expired, within the quota"


def _size(entry: StoreEntry) -> int:
    return sum(own_sizes(Objects(entry.url)).values())


def _delete(entry: StoreEntry, reason: str, sizes: dict[str, int], is_rehearsal: bool, grace_s: float) -> Pruned:
    size_bytes = sizes.get(entry.url, 0)
    if entry.retention.is_pinned:
        return Pruned(entry.url, "skipped", f"{reason}, but pinned", size_bytes)
    if entry.in_use_by:
        return Pruned(entry.url, "skipped", f"{reason}, but in use by {', '.join(entry.in_use_by)}", size_bytes)
    if time.time() - (entry.last_used_s or 0.0) < grace_s:
        return Pruned(entry.url, "skipped", f"{reason}, but read within the last {grace_s / 3600:g} h", size_bytes)
    if is_rehearsal:
        return Pruned(entry.url, "deleted", reason, size_bytes)
    try:
        gone = delete_store(entry.url, reason=reason)
    except BusyError as error:
        # Pinned or taken between the catalogue and now.
        return Pruned(entry.url, "skipped", f"{reason}, but {error}", size_bytes)
    kept = f"; {gone.num_kept} files that are not the store's are left" if gone.num_kept else ""
    return Pruned(entry.url, "deleted", reason + kept, gone.size_bytes)
