"""A rank's side of a live feed: blocks from the exchange, from a growing store, or from whichever has them first."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event, Lock
from typing import Any

import ray
from ray import exceptions

from pipeline.order.live import LedgerBlocks
from pipeline.store import layout
from pipeline.store.arriving import ArrivingStore, Blocks
from pipeline.store.log import StoreLog, planned_rows
from pipeline.store.objects import Objects
from pipeline.store.unit_objects import StoredRows
from pipeline.store.words import Floats, Words
from pipeline.tokens.table import TokenTable
from schemas.errors import HookPointError, MismatchError, SpecError, nearest
from schemas.fields import Dtype
from schemas.store import HookStatistics, StoreRecord
from schemas.train import TrainSpec
from workers.answers import answer_of
from workers.cluster import NAMESPACE
from workers.live_schedule import Reader

POLL_S = 0.5


@dataclass(frozen=True)
class FeedSource:
    """What a rank must know of a collection that is under way. Picklable."""

    url: str
    record: StoreRecord
    table_url: str
    num_rows: int
    """As planned."""
    exchange: str = ""
    """Name of the actor; empty of a collection that runs elsewhere."""

    @classmethod
    def of_store(cls, url: str) -> FeedSource:
        """A store that another job collects, as far as it says what it will be.

        Raises:
            MissingError: it is not begun. SpecError: its rows are not in the order of a token table.
        """
        objects = Objects(url)
        record = layout.read_record(objects)
        if record.shuffled is not None or record.exported is not None:
            raise SpecError(f"feed follow reads a store that is being collected; {url} was made from another store")
        return cls(url, record, record.table_url, planned_rows(StoreLog(objects).read()))

    def open(self, spec: TrainSpec, hook_points: list[str], reader: Reader) -> ArrivingStore:
        """The store as a rank reads it.

        Raises:
            MismatchError: the token table is another one by now. HookPointError: nobody collects a hook point.
        """
        table = TokenTable.open(self.table_url)
        if table.fingerprint != self.record.table_fingerprint:
            raise MismatchError(f"the token table at {self.table_url} is not the one of the store at {self.url}")
        blocks = self._blocks(spec, hook_points, reader)
        return ArrivingStore(self.url, self.record, table, blocks, hook_points, self.num_rows)

    def _blocks(self, spec: TrainSpec, hook_points: list[str], reader: Reader) -> Blocks:
        exchange: Any = ray.get_actor(self.exchange, namespace=NAMESPACE) if self.exchange else None
        if spec.feed == "live":
            return ExchangeBlocks(exchange, reader, self.record, hook_points)

        def require_alive() -> None:
            asked(exchange.require_running.remote())

        ledger = LedgerBlocks(
            self.url, hook_points, num_rows=self.num_rows, require_alive=require_alive if exchange else None
        )
        return TeeBlocks(ledger, exchange, reader, self.record) if spec.feed == "tee" else ledger


class _HeldBlocks:
    """Rows in Ray's object store that a rank holds until it is done with them."""

    def __init__(self, record: StoreRecord) -> None:
        self._shard_rows = record.shard_rows
        self._dtype: Dtype = record.dtype
        self._held: dict[int, dict[str, StoredRows]] = {}
        self._lock = Lock()

    def rows(self, hook: str, start: int, stop: int) -> StoredRows | None:
        """Views; None of a unit that is not held."""
        unit = start // self._shard_rows
        block = self._held.get(unit)
        if block is None:
            return None
        part = slice(start - unit * self._shard_rows, stop - unit * self._shard_rows)
        rows = block[hook]
        return StoredRows(rows.words[part], None if rows.scales is None else rows.scales[part])

    def release(self, unit: int) -> None:
        """Let go of all units before ``unit``."""
        for old in [one for one in self._held if one < unit]:
            self._held.pop(old, None)


class ExchangeBlocks(_HeldBlocks):
    """Feed ``live``: every block comes from the exchange."""

    def __init__(self, exchange: Any, reader: Reader, record: StoreRecord, hook_points: list[str]) -> None:
        super().__init__(record)
        self._exchange = exchange
        self._reader = reader
        self._hooks = hook_points

    def wait(self, unit: int, stop: Event) -> bool:
        """See ``Blocks``. One thread asks at a time: units are wanted in order."""
        while not stop.is_set():
            with self._lock:
                if unit in self._held:
                    return True
                reference = self._exchange.block.remote(self._reader, unit)
                if not _came(reference, stop):
                    return False
                block = asked(reference)
                rows = _rows_of(block, self._hooks)
                if rows is not None:
                    self._held[unit] = rows
                    return True
                asked(self._exchange.lost.remote(unit))
        return False

    def read_rows(self, hook: str, start: int, stop: int) -> Words:
        """See ``Blocks``: read-only views."""
        return self._found(hook, start, stop).words

    def read_values(self, hook: str, start: int, stop: int) -> Floats:
        """See ``Blocks``."""
        return self._found(hook, start, stop).values(self._dtype)

    def statistics(self, num_units: int) -> dict[str, HookStatistics]:
        """See ``Blocks``."""
        found: dict[str, HookStatistics] = asked(self._exchange.statistics.remote(num_units))
        for hook in self._hooks:
            if hook not in found:
                raise HookPointError(f"no {hook!r} among the hook points that are collected{nearest(hook, found)}")
        return found

    def done_before(self, unit: int) -> None:
        """See ``Blocks``: the exchange may have further blocks made."""
        self.release(unit)
        self._exchange.done_before.remote(self._reader, unit)

    def _found(self, hook: str, start: int, stop: int) -> StoredRows:
        rows = self.rows(hook, start, stop)
        assert rows is not None, "rows are read after wait"
        return rows


class TeeBlocks(_HeldBlocks):
    """Feed ``tee``: what the exchange was offered, else what the ledger has."""

    def __init__(self, ledger: LedgerBlocks, exchange: Any, reader: Reader, record: StoreRecord) -> None:
        super().__init__(record)
        self._ledger = ledger
        self._exchange = exchange
        self._reader = reader

    def wait(self, unit: int, stop: Event) -> bool:
        """See ``Blocks``."""
        while not stop.is_set():
            with self._lock:
                # Later epochs are all the ledger's: asking for each of their chunks would cost more than reading it.
                if unit in self._held or self._ledger.knows(unit):
                    return True
                block = asked(self._exchange.offered.remote(self._reader, unit))
                rows = _rows_of(block, self._ledger.hook_points) if block else None
                if rows is not None:
                    self._held[unit] = rows
                    return True
            if self._ledger.is_there(unit):
                return True
            stop.wait(self._ledger.poll_s)
        return False

    def read_rows(self, hook: str, start: int, stop: int) -> Words:
        """See ``Blocks``."""
        rows = self.rows(hook, start, stop)
        return self._ledger.read_rows(hook, start, stop) if rows is None else rows.words

    def read_values(self, hook: str, start: int, stop: int) -> Floats:
        """See ``Blocks``."""
        rows = self.rows(hook, start, stop)
        return self._ledger.read_values(hook, start, stop) if rows is None else rows.values(self._dtype)

    def statistics(self, num_units: int) -> dict[str, HookStatistics]:
        """See ``Blocks``: from the ledger."""
        return self._ledger.statistics(num_units)

    def done_before(self, unit: int) -> None:
        """See ``Blocks``."""
        self.release(unit)
        self._exchange.done_before.remote(self._reader, unit)


def asked(reference: Any) -> Any:
    """The answer of the exchange.

    Raises:
        HeadworksError: that the collection failed with, or a JobError that the exchange is gone.
    """
    advice = "It has ended before the training; run the pipeline again to go on from the last checkpoint."
    return answer_of(reference, "the collection that feeds this training", advice=advice)


def _came(reference: Any, stop: Event) -> bool:
    while not stop.is_set():
        if ray.wait([reference], timeout=POLL_S)[0]:
            return True
    return False


def _rows_of(block: dict[str, Any], hooks: list[str]) -> dict[str, StoredRows] | None:
    """The rows of a block; None where it lacks a hook point, or where its rows are lost."""
    if not all(hook in block for hook in hooks):
        return None
    try:
        return dict(zip(hooks, ray.get([block[hook] for hook in hooks]), strict=True))
    except (exceptions.ObjectLostError, exceptions.RayActorError):
        return None
