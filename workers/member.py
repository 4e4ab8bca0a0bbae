"""One process of a replica that has several, and what all of them have in common: units in, parts or receipts out.

Units are begun in the order in which they are handed out, in one thread, so that all members of a replica have them in
the same order; results are waited for in other threads. One member leads: it commits a unit once the others have
written theirs.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import ray
from ray import exceptions

from pipeline.collection.outbox import Key
from pipeline.collection.overlap import OverlappedCollector
from pipeline.collection.parts import PartCollector
from pipeline.collection.unit_run import Collected, UnitParts
from workers.collector import Receipt
from workers.pool import Loaded

UNITS, RESULTS, STATES = "units", "results", "states"
"""Concurrency groups: units are begun by one thread; waiting for them, and for a neighbour's states, takes others."""


class PartWorker:
    """Runs the units of one member. Final; belongs to the actor."""

    def __init__(self, collector: PartCollector, *, leads: bool) -> None:
        self._others: dict[Key, Sequence[Any]] = {}
        self._begun: dict[Key, tuple[Future[Any], float]] = {}
        self._changed = threading.Condition()
        self._overlapped: OverlappedCollector[Any] = (
            collector.leading(self._written_by_others) if leads else collector.following()
        )

    def begin(self, key: Key, others: Sequence[Any]) -> Future[Any]:
        """Begin a unit behind those before; waits for room. ``others``: references of the other members' results."""
        self._others[key] = others
        started = time.perf_counter()
        future = self._overlapped.submit(*key)
        with self._changed:
            self._begun[key] = future, started
            self._changed.notify_all()
        return future

    def result(self, key: Key) -> UnitParts | Receipt:
        """Wait for a unit, which may not have been begun yet; raises the error that it failed with."""
        with self._changed:
            self._changed.wait_for(lambda: key in self._begun)
            future, started = self._begun.pop(key)
        try:
            ended: UnitParts | Collected = future.result()
        finally:
            self._others.pop(key, None)
        return ended if isinstance(ended, UnitParts) else receipt_of(key, ended, time.perf_counter() - started)

    def _written_by_others(self, unit: int, attempt: int) -> list[UnitParts]:
        return [fetched(reference) for reference in self._others.pop((unit, attempt))]


def fetched(reference: Any) -> Any:
    """What a reference gives, or the error that was raised there.

    Raises:
        RayActorError: the member that should answer is dead.
    """
    try:
        return ray.get(reference)
    except exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None


def receipt_of(key: Key, collected: Collected, seconds: float) -> Receipt:
    """What the pool is told of a committed unit."""
    entry = collected.entry
    size_bytes = sum(receipt.size_bytes for receipt in entry.objects.values())
    return Receipt(key[0], entry.num_rows, size_bytes, key[1], {**collected.seconds, "total": seconds})


def loaded_together(first: Loaded, *others: Loaded) -> Loaded:
    """What a replica says whose members have all loaded: as the first, with the work and the devices of all."""
    every = (first, *others)
    return replace(
        first,
        seconds=max(one.seconds for one in every),
        flop_per_token=sum(one.flop_per_token for one in every),
        peak_flop_per_s=sum(one.peak_flop_per_s for one in every),
    )


def worker_name(name: str) -> str:
    """For the ledger: which process of which machine."""
    return f"{name}@{socket.gethostname()}:{os.getpid()}"
