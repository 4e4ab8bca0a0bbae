"""How long a store is kept: pins, times to live, and what a deletion leaves while it is under way."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat

from schemas.fields import Duration, NonNegativeByteSize, Spec


class RetentionSpec(Spec):
    """What a collect job wishes for a store that it makes. Never part of a fingerprint; ``headworks store pin`` and
    ``expire`` change it later."""

    ttl: Duration = 0
    """How long the store is kept after it is complete, for example ``30d``; 0: no limit."""
    pin: bool = False
    """Never to be deleted by ``headworks store prune``."""
    quota: NonNegativeByteSize = 0
    """Bytes that the store may take, for example ``2TiB``; a job that would exceed it is refused before it computes
    anything. 0: no limit."""


class Retention(Spec):
    """``retention.json``: how long the store is kept. Without it: not pinned, no expiry."""

    format: Literal[1] = 1
    """Store format."""
    is_pinned: bool = False
    """Never deleted by ``headworks store prune``."""
    expires: NonNegativeFloat = 0.0
    """Unix seconds after which it may be deleted; 0: never by age."""
    set_by: str = ""
    """USER@HOST of the last change; for people."""


class LastUse(Spec):
    """``last_use.json``: a job that read the store. Replaced by each, so the last one is what remains."""

    format: Literal[1] = 1
    """Store format."""
    job: str
    """What read it."""
    owner: str
    """USER@HOST, process number."""
    time: float
    """Unix seconds of the owner's clock."""


class Deletion(Spec):
    """``deleting.json``: somebody is deleting the store, or was killed doing so. Written first, deleted last."""

    format: Literal[1] = 1
    """Store format."""
    fingerprint: str
    """The store's identity."""
    reason: str
    """Why; for people."""
    owner: str
    """USER@HOST, process number."""
    started: float
    """Unix seconds of the owner's clock."""
