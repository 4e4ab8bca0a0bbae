"""Sweeping a store: deletes what writers that died have left, and nothing that any ledger entry names.

1. An exclusive lease is taken: no job writes meanwhile, and none takes a leftover over while it is deleted.
2. Every ledger entry is read. Where one cannot be, nothing is swept: what it names is not known.
3. What is left over and older than the grace age, by the storage's own clock, is deleted.

Only keys that a writer makes are looked at: files that people put beside them stay.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Literal

from pipeline.store import layout
from pipeline.store.leases import held, lease_key, live_leases, stale_leases
from pipeline.store.ledger import Ledger
from pipeline.store.log import StoreLog, log_key, opened_passes
from pipeline.store.manifests import read_manifest
from pipeline.store.objects import Objects, is_partial
from schemas.errors import CorruptionError, DataError, MissingError
from schemas.lease import Lease
from schemas.store import StoreRecord

GRACE_S = 3600.0
"""Age below which nothing is swept: a writer without a lease may still be at work on it."""

_WRITTEN = re.compile(
    r"activations/[^/]+/(c/\d+/0|\d+\.arrow)|scales/[^/]+/c/\d+|tokens/\d{8,}\.parquet"
    r"|comoments/[^/]+/\d{8,}\.npy|covariances/[^/]+/\d+\.npy"
)
Kind = Literal["partial file", "leftover object", "stale lease"]


@dataclass(frozen=True)
class Leftover:
    """One thing that nothing names."""

    key: str
    kind: Kind
    size_bytes: int
    is_young: bool
    """Not older than the grace age, so it stays."""


@dataclass(frozen=True)
class Sweep:
    """What was found, by key; all but the young ones is gone, unless this was a rehearsal."""

    leftovers: list[Leftover]
    in_use_by: list[Lease]
    """Of a rehearsal: the jobs that a real sweep would refuse to disturb."""

    @property
    def swept(self) -> list[Leftover]:
        return [one for one in self.leftovers if not one.is_young]


def sweep(url: str, *, grace_s: float = GRACE_S, is_rehearsal: bool = False) -> Sweep:
    """Delete what nothing names; a rehearsal writes nothing at all.

    Raises:
        MissingError: there is no store. BusyError: a job holds a lease on it; says whose.
        CorruptionError: a document of the store is damaged, so that it is not known what is named; nothing is deleted.
    """
    objects = Objects(url)
    record = layout.read_record(objects)
    with nullcontext() if is_rehearsal else held(objects, "gc", is_exclusive=True) as lease:
        found = [*_leftovers(objects, record, lease, grace_s)]
        if lease is None:
            return Sweep(found, live_leases(objects))
        for one in found:
            if not one.is_young:
                objects.delete(one.key)
        return Sweep(found, [])


def _leftovers(objects: Objects, record: StoreRecord, lease: Lease | None, grace_s: float) -> Iterator[Leftover]:
    # Listed before the ledger is read: an object that is written after this line is not even looked at.
    sizes = {**objects.sizes(), **objects.partials()}
    times = objects.times()
    now_s = times.get(lease_key(lease.job), time.time()) if lease else time.time()
    named = _named(objects, record)
    stale = {*stale_leases(objects, lease)}
    for key in sorted(sizes):
        if (kind := _kind(key, named, stale)) is not None:
            is_young = kind != "stale lease" and now_s - times.get(key, 0.0) < grace_s
            yield Leftover(key, kind, sizes[key], is_young)


def _kind(key: str, named: set[str], stale: set[str]) -> Kind | None:
    """None of what stays."""
    if is_partial(key):
        return "partial file"
    if key in stale:
        return "stale lease"
    return "leftover object" if _WRITTEN.fullmatch(key) and key not in named else None


def _named(objects: Objects, record: StoreRecord) -> set[str]:
    """Keys that a ledger entry or the manifest names."""
    try:
        keys = {*_named_by_ledger(objects, record)}
        with suppress(MissingError):
            keys.update(receipt.key for receipt in read_manifest(objects, record).covariances.values())
    except DataError as exc:
        raise CorruptionError(
            f"{exc}\nWhat it names is not known: nothing was swept. Run `headworks store repair {objects.url}` first."
        ) from exc
    return keys


def _named_by_ledger(objects: Objects, record: StoreRecord) -> Iterator[str]:
    passes = opened_passes(StoreLog(objects).read())
    for pass_, units in committed_units(objects).items():
        if pass_ not in passes:
            raise CorruptionError(f"{objects.url}/{log_key(0)} and later: expected the pass {pass_}, got nothing")
        for entry in Ledger(objects, pass_, record.fingerprint).entries(units):
            yield from (receipt.key for receipt in entry.objects.values())


def committed_units(objects: Objects) -> dict[str, list[int]]:
    """pass id -> units of every ledger that there is, by one listing."""
    found: dict[str, list[int]] = {}
    for key in objects.list("ledger/"):
        found.setdefault(key.split("/")[1], []).append(layout.unit_of_ledger_key(key))
    return {pass_: sorted(units) for pass_, units in sorted(found.items())}
