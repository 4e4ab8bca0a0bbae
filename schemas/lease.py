"""A job's claim on a store while it writes: who, since when, until when."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from schemas.fields import Spec


class Lease(Spec):
    """``leases/JOB.json``: renewed while the job runs, removed when it ends, and void once it has not been renewed for
    ``duration_s``. Times are Unix seconds of the owner's clock and count only where the storage keeps none."""

    format: Literal[1] = 1
    """Store format."""
    job: str
    """What runs, with a random part: unique."""
    owner: str
    """USER@HOST, process number; for people."""
    is_exclusive: bool
    """Repair and sweep want the store for themselves; jobs that add to it share it."""
    started: float
    """When the job began."""
    expires: float
    """When the lease is void unless it is renewed."""
    duration_s: PositiveFloat
    """Seconds from a renewal to the end."""
