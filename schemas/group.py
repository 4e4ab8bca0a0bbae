"""What a store group says of itself: row-aligned stores of several snapshots. Written as JSON, read by anybody."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt

from schemas.fields import Name, Spec
from schemas.model import ModelSpec


class GroupMember(Spec):
    """One store of a group."""

    name: Name
    """The snapshot; its hook point H is ``NAME/H`` of the group."""
    store: str
    """The store's folder, relative to the group's."""
    step: NonNegativeInt | None = None
    """Training step; None where nobody said it."""
    model: ModelSpec
    """The network that was run."""


class GroupRecord(Spec):
    """``group.json``: the stores that a collect job with ``snapshots`` makes below one folder."""

    format: Literal[1] = 1
    """Group format; a reader refuses a newer one."""
    table_fingerprint: str
    """The one token table: row r of every store is token r of it."""
    table_url: str
    """Where the token table was; a hint, the stores have their own copies of the tokens."""
    pattern: str = ""
    """The pattern by which the snapshots were found, empty where they were named."""
    members: list[GroupMember]
    """In order. Named from the beginning of the job on: the store of one that is yet to be collected is not there."""
