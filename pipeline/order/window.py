"""Windows of activations in memory, and the threads that read the next one ahead.

1. A window is read chunk by chunk, by a few threads; each row is written where the shuffle wants it (one copy).
2. A batch that lies within a window is then a slice of it: no further copy.
3. While the consumer works on one window, the other of exactly two sets of buffers is filled, and the order of the
   window after that is worked out.

Everything here is numpy: ``pipeline.order.feed`` puts torch around it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.order.arranging import Slots
from pipeline.order.epoch import Window
from pipeline.order.placing import place_chunks
from pipeline.store.arriving import ArrivingStore
from pipeline.store.ledger import REQUESTS_AT_ONCE
from pipeline.store.words import Words, stored_dtype
from schemas.fields import LOSSY

if TYPE_CHECKING:
    from pipeline.store.arriving import FeedStore

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Buffers = Mapping[str, Words]
"""hook point -> [rows, D] of ``row_dtype``."""

MAX_DECODERS = 8
"""Threads that read a local store; a few of them use up the memory's bandwidth."""
_TASKS_PER_THREAD = 4
_MOST_TOGETHER = 16


def row_dtype(store: FeedStore) -> np.dtype[Any]:
    """What a feed's rows are made of: the stored words, or float32 values where words need a scale to mean anything."""
    return np.dtype(np.float32) if store.dtype in LOSSY else stored_dtype(store.dtype)


@dataclass(frozen=True)
class PlannedWindow:
    """What one reader reads of a window, and where it puts it."""

    epoch: int
    start: int
    """Position in the epoch of the window's first row, over all ranks."""
    stop: int
    """Position in the epoch behind the window's last row, over all ranks."""
    positions: Ints
    """Position in the epoch of each of this reader's rows, ascending, [n]."""
    rows: Ints
    """Row ids in the same order, [n]."""
    chunks: Ints
    """The chunks that hold them, [C]."""
    slots: Slots
    """For each row of each of these chunks its place among the n, [C, chunk_rows]; -1: not this reader's."""
    last_chunk: int
    """The last chunk of the window, over all ranks."""

    def slice(self, start: int, stop: int) -> slice:
        """This reader's rows between two positions of the epoch."""
        first, last = np.searchsorted(self.positions, [start, stop])
        return slice(int(first), int(last))


def plan_window(epoch: int, window: Window, mine: Mask | None) -> PlannedWindow:
    """``mine`` marks the reader's rows among the window's, [window rows]; None: all of them."""
    last = int(window.chunks.max())
    if mine is None:
        positions = np.arange(window.start, window.stop)
        return PlannedWindow(
            epoch, window.start, window.stop, positions, window.rows, window.chunks, window.slots, last
        )
    kept = np.flatnonzero(mine)
    slots = np.full_like(window.slots, -1)
    slots[window.places[kept], window.rows[kept] % slots.shape[1]] = np.arange(len(kept), dtype=np.int32)
    touched = np.flatnonzero((slots >= 0).any(axis=1))
    rows = window.rows[kept]
    return PlannedWindow(
        epoch, window.start, window.stop, kept + window.start, rows, window.chunks[touched], slots[touched], last
    )


@dataclass(frozen=True)
class LoadedWindow:
    """A window whose rows lie in a set of buffers, which a later window overwrites."""

    plan: PlannedWindow
    buffer: int
    """Which set of buffers has the rows, from its first row on."""


def num_decoders(store: FeedStore) -> int:
    """Threads that read chunks at a time: requests under way to a remote store, cores for a local one."""
    if not store.objects.is_local:
        return REQUESTS_AT_ONCE
    return min(MAX_DECODERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def load_window(
    store: FeedStore, plan: PlannedWindow, buffers: Buffers, decoders: ThreadPoolExecutor, stop: Event
) -> None:
    """Fill ``buffers`` with the rows of the plan, in its order.

    Returns early, with rows missing, once ``stop`` is set: nobody looks at that window any more.
    """
    size = store.record.chunk_rows

    def fill(job: tuple[str, range]) -> None:
        hook, places = job
        sources: list[Words] = []
        for place in places:
            if stop.is_set():
                return
            first = int(plan.chunks[place]) * size
            if isinstance(store, ArrivingStore) and not store.wait(first, stop):
                return
            sources.append(_read(store, hook, first, min(first + size, store.num_rows)))
        place_chunks(sources, plan.slots[places.start : places.stop], buffers[hook])

    for _ in decoders.map(fill, _tasks(store, plan, buffers)):
        pass
    if isinstance(store, ArrivingStore) and plan.epoch == 0 and not stop.is_set():
        # The next windows are those behind it: the first epoch of such a store is in its order.
        store.done_before((plan.last_chunk + 1) * size)


def _read(store: FeedStore, hook: str, start: int, stop: int) -> Words:
    if store.dtype in LOSSY:
        return store.read_values(hook, start, stop)
    return store.read_rows(hook, start, stop)


def _tasks(store: FeedStore, plan: PlannedWindow, buffers: Buffers) -> list[tuple[str, range]]:
    """Which chunks of the plan are read and placed together: several where they are views of mapped files, since the
    copy of one takes no longer than what goes with it; else one, so that few decoded chunks are in memory."""
    count = len(plan.chunks)
    mapped = store.objects.is_local and store.record.codec == "none" and store.dtype not in LOSSY
    together = min(_MOST_TOGETHER, -(-count // (num_decoders(store) * _TASKS_PER_THREAD))) if mapped else 1
    return [
        (hook, range(first, min(first + together, count)))
        for first in range(0, count, max(together, 1))
        for hook in buffers
    ]


class Prefetch:
    """Windows of an endless sequence, one read ahead. A context manager: leaving it ends the threads."""

    def __init__(
        self,
        windows: Iterator[PlannedWindow],
        store: FeedStore,
        buffers: tuple[Buffers, Buffers],
    ) -> None:
        self._windows = windows
        self._store = store
        self._buffers = buffers
        self._stop = Event()
        # One reader and one planner: windows are planned and read strictly one after the other.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="headworks-rows")
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="headworks-rows-plan")
        self._decoders = ThreadPoolExecutor(num_decoders(store), thread_name_prefix="headworks-rows-decode")
        self._planned = self._planner.submit(next, self._windows)
        self._pending: Future[LoadedWindow] = self._reader.submit(self._read, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for pool in (self._reader, self._planner, self._decoders):
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, buffer: int) -> LoadedWindow:
        plan = self._planned.result()
        if not self._stop.is_set():
            self._planned = self._planner.submit(next, self._windows)
        load_window(self._store, plan, self._buffers[buffer], self._decoders, self._stop)
        return LoadedWindow(plan, buffer)

    def advance(self) -> LoadedWindow:
        """Wait for the next window. The one before it is given up: its buffers are being refilled from now on.

        Raises:
            Exception: whatever reading the window raised, in the caller's thread.
        """
        window = self._pending.result()
        self._pending = self._reader.submit(self._read, 1 - window.buffer)
        return window
