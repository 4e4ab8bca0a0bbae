"""Reading a store while it is collected: blocks that appear with their entries in the ledger."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from threading import Event, Lock
from typing import TypeVar

from pipeline.store import layout
from pipeline.store.leases import live_leases
from pipeline.store.log import StoreLog, opened_passes
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.statistics import merge_all
from pipeline.store.words import Floats, Words
from schemas.errors import IncompleteError, MissingError
from schemas.store import HookStatistics
from schemas.train import TrainSpec

Found = TypeVar("Found")

LOCAL_POLL_S = 0.2
REMOTE_POLL_S = 2.0
PATIENCE_S = 120.0
"""How long a store may be without any job that writes to it before it is given up."""

_log = logging.getLogger(__name__)


def blocks_ahead(training: TrainSpec, *, chunk_rows: int, shard_rows: int, num_workers: int) -> int:
    """Units whose rows may wait in memory for the slowest rank, where ``num_workers`` processes make them."""
    window = layout.num_units(training.order.window_chunks * chunk_rows, shard_rows)
    return training.workers.blocks_ahead or window + num_workers


class LedgerBlocks:
    """The units of a store that is being collected, each readable once its ledger entry exists. Final.

    Nothing is kept that the store does not have: a reader that starts anew finds the same rows.
    """

    def __init__(
        self,
        url: str,
        hook_points: Sequence[str],
        *,
        num_rows: int,
        require_alive: Callable[[], None] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """``num_rows``: of the collection's plan. ``require_alive`` raises where the collection has failed, which
        ends the reading at once; without it a store is given up when it lacks what is wanted and no job has held a
        lease on it for ``patience_s``."""
        self._objects = Objects(url)
        self.hook_points = list(hook_points)
        self._num_rows = num_rows
        self._require_alive = require_alive
        self._patience_s = patience_s
        self._seen_alive_s = time.monotonic()
        self._asked_s = 0.0
        self.poll_s = LOCAL_POLL_S if self._objects.is_local else REMOTE_POLL_S
        """Seconds between two looks."""
        self._opened: Store | None = None
        self._there: set[int] = set()
        self._lock = Lock()

    def wait(self, unit: int, stop: Event) -> bool:
        """See ``Blocks``. One look at the ledger for each hook point's pass; later calls know."""
        if unit in self._there:
            self._ask()
            return True
        return self._waited_for(lambda: self.is_there(unit) or None, stop) is not None

    def knows(self, unit: int) -> bool:
        """Whether a unit was found there before; no look."""
        return unit in self._there

    def is_there(self, unit: int) -> bool:
        """One look, without waiting."""
        store = self._open()
        if unit not in self._there and store is not None and self._entries(store, unit) is not None:
            with self._lock:
                self._there.add(unit)
        return unit in self._there

    def read_rows(self, hook: str, start: int, stop: int) -> Words:
        """See ``Blocks``; checked as any read of a store is."""
        return self._store().read_rows(hook, start, stop)

    def read_values(self, hook: str, start: int, stop: int) -> Floats:
        """See ``Blocks``."""
        return self._store().read_values(hook, start, stop)

    def statistics(self, num_units: int) -> dict[str, HookStatistics]:
        """See ``Blocks``: from the ledger, merged in the order of the units."""
        never = Event()
        for unit in range(num_units):
            self.wait(unit, never)
        store = self._store()
        entries = [self._entries(store, unit) for unit in range(num_units)]
        return {
            hook: merge_all((found[hook] for found in entries if found), width=store.hook_points[hook])
            for hook in self.hook_points
        }

    def done_before(self, unit: int) -> None:
        """The store keeps what was read."""

    def _store(self) -> Store:
        store = self._open()
        if store is None:
            raise IncompleteError(f"the store at {self._objects.url} was read before any of its units was there")
        return store

    def _open(self) -> Store | None:
        """The store as it will be, once its record and a pass of each hook point are there."""
        with self._lock:
            if self._opened is None:
                self._opened = self._look()
            return self._opened

    def _look(self) -> Store | None:
        try:
            record = layout.read_record(self._objects)
        except MissingError:
            return None
        passes = opened_passes(StoreLog(self._objects).read())
        if not {*self.hook_points} <= {hook for one in passes.values() for hook in one.hook_points}:
            return None
        # Whatever a manifest shows by now is of a smaller plan.
        return Store(self._objects, record, passes, None, self._num_rows)

    def _entries(self, store: Store, unit: int) -> dict[str, HookStatistics] | None:
        """Hook point -> statistics of a unit that is committed at all of them, else None."""
        found: dict[str, HookStatistics] = {}
        for pass_, one in store.passes.items():
            if wanted := {*one.hook_points} & {*self.hook_points}:
                try:
                    entry = store.entry(pass_, unit)
                except IncompleteError:
                    return None
                found |= {hook: entry.statistics[hook] for hook in wanted}
        return found

    def _waited_for(self, look: Callable[[], Found | None], stop: Event) -> Found | None:
        """What ``look`` finds in the end; None once ``stop`` is set."""
        while True:
            self._ask()
            found = look()
            if found is not None:
                return found
            if self._require_alive is None:
                self._require_lease()
            if stop.wait(self.poll_s):
                return None

    def _ask(self) -> None:
        """Whether the collection still goes well, now and then."""
        now_s = time.monotonic()
        if self._require_alive is not None and now_s - self._asked_s >= self.poll_s:
            self._asked_s = now_s
            self._require_alive()

    def _require_lease(self) -> None:
        """Raises IncompleteError where nobody has been writing for too long."""
        now_s = time.monotonic()
        with self._lock:
            if now_s - self._asked_s < self._patience_s / 10:
                return
            self._asked_s = now_s
            if live_leases(self._objects):
                self._seen_alive_s = now_s
        if now_s - self._seen_alive_s > self._patience_s:
            raise IncompleteError(
                f"the store at {self._objects.url} is not complete and no job has been writing to it for "
                f"{self._patience_s:.0f} s: start its collect job again; this training then goes on from its checkpoint"
            )
