"""Processes that make blocks: those of feed ``live``, and collectors that offer what they write (``tee``)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch

from pipeline.collection.handing import HandOver, TeeWriter, open_block_collector
from pipeline.collection.prepare import CollectPass
from pipeline.collection.unit import UnitCollector
from pipeline.store.unit_objects import StoredRows
from schemas.store import HookStatistics
from workers.cluster import NAMESPACE
from workers.collector import Collector
from workers.pool import Loaded


@dataclass(frozen=True)
class BlockReceipt:
    """A block is made."""

    num_rows: int
    size_bytes: int
    statistics: dict[str, HookStatistics]
    """hook point -> of the block's rows."""


class LiveForward:
    """One model, whose blocks are what its calls return; runs as an actor."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._collector: UnitCollector | None = None
        self._rows: dict[str, StoredRows] = {}

    def load(self, one: CollectPass, num_threads: int) -> None:
        """Load the model."""
        torch.set_num_threads(num_threads)
        worker = f"{self._name}@{socket.gethostname()}:{os.getpid()}"
        self._collector = open_block_collector(one, self._hand_over, worker=worker)

    def make(self, unit: int) -> list[Any]:
        """Compute a unit: a ``BlockReceipt``, then the ``StoredRows`` of each hook point in the order of the pass."""
        assert self._collector is not None, "load comes first"
        entry = self._collector.collect(unit)
        rows, self._rows = self._rows, {}
        size_bytes = sum(_size(one) for one in rows.values())
        receipt = BlockReceipt(entry.num_rows, size_bytes, entry.statistics)
        return [receipt, *(rows[hook] for hook in self._collector.writer.pass_record.hook_points)]

    def _hand_over(self, unit: int, hook: str, rows: StoredRows) -> None:
        # Ray copies them into its store when the call returns; until then the unit's arrays are nobody else's.
        self._rows[hook] = rows


def tee_collector(exchange: str, base: type[Collector] = Collector) -> type[Collector]:
    """A collector that offers each unit's rows to the exchange of that name before it writes them."""

    class TeeCollector(base):  # type: ignore[misc,valid-type]
        _collector: UnitCollector | None

        def load(self, one: CollectPass, num_threads: int) -> Loaded:
            loaded: Loaded = super().load(one, num_threads)
            assert self._collector is not None
            writer = TeeWriter.around(self._collector.writer, _offer(exchange))
            self._collector = replace(self._collector, writer=writer)
            return loaded

    return TeeCollector


def _offer(name: str) -> HandOver:
    """Offers rows to the exchange of that name. Without room the ranks read the store: a tee waits for nobody."""
    exchange: Any = ray.get_actor(name, namespace=NAMESPACE)

    def offer(unit: int, hook: str, rows: StoredRows) -> None:
        # Once the training has ended the store is still to be written.
        with suppress(ray.exceptions.RayActorError):
            if ray.get(exchange.has_room.remote(unit)):
                ray.get(exchange.offer.remote(unit, {hook: ray.put(rows)}))

    return offer


def _size(rows: StoredRows) -> int:
    return rows.words.nbytes + (0 if rows.scales is None else rows.scales.nbytes)
