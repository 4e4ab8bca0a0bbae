"""Windows of activations in memory, and the thread that reads the next one ahead.

1. A window is read chunk by chunk; each eligible row is written where the shuffle wants it (one copy).
2. A batch that lies within a window is then a slice of it: no further copy.
3. While the consumer works on one window, one thread fills the other of exactly two sets of buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.order.epoch import Window
from pipeline.store.ledger import in_order

if TYPE_CHECKING:
    from pipeline.store.reader import Store

Ints = npt.NDArray[np.int64]
Buffers = Mapping[str, Tensor]
"""hook point -> [rows, D] in the stored dtype."""

TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class LoadedWindow:
    """One rank's rows of a window. The activations are views of a buffer that a later window overwrites."""

    epoch: int
    start: int
    """Position in the epoch of the window's first row, over all ranks."""
    stop: int
    """Position in the epoch behind the window's last row, over all ranks."""
    positions: Ints
    """Position in the epoch of each of this rank's rows, ascending, [n]."""
    rows: Ints
    """Row ids in the same order, [n]."""
    activations: dict[str, Tensor]
    """hook point -> [n, D]."""

    def slice(self, start: int, stop: int) -> slice:
        """This rank's rows between two positions of the epoch."""
        first, last = np.searchsorted(self.positions, [start, stop])
        return slice(int(first), int(last))


def allocate(store: Store, hook_points: list[str], num_rows: int, *, pin_memory: bool) -> Buffers:
    """Uninitialised buffers of ``num_rows`` rows for each hook point."""
    dtype = TORCH_DTYPES[store.dtype]
    return {
        hook: torch.empty((num_rows, store.hook_points[hook]), dtype=dtype, pin_memory=pin_memory)
        for hook in hook_points
    }


def as_words(tensor: Tensor) -> npt.NDArray[Any]:
    """The tensor's memory as numpy sees stored words: bfloat16 as uint16, other types as themselves. No copy."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    array: npt.NDArray[Any] = tensor.numpy()
    return array


def load_window(
    store: Store, window: Window, buffers: Buffers, *, epoch: int, rank: int, world_size: int, stop: Event
) -> LoadedWindow:
    """Fill ``buffers`` with the rows that ``rank`` owns, in the window's order.

    Returns early, with rows missing, once ``stop`` is set: nobody looks at that window any more.
    """
    mine = np.flatnonzero(window.places % world_size == rank)
    rows, places = window.rows[mine], window.places[mine]
    activations = {hook: buffer[: len(mine)] for hook, buffer in buffers.items()}
    words = {hook: as_words(tensor) for hook, tensor in activations.items()}
    by_place = np.argsort(places, kind="stable")
    cuts = np.flatnonzero(np.diff(places[by_place])) + 1
    chunks = np.split(by_place, cuts) if len(by_place) else []

    def fill(job: tuple[str, Ints]) -> None:
        hook, slots = job
        if not stop.is_set():
            wanted = rows[slots]
            first = int(wanted.min())
            words[hook][slots] = store.read_rows(hook, first, int(wanted.max()) + 1)[wanted - first]

    # One after the other from a local disk; several requests at a time to a remote store.
    for _ in in_order(store.objects, fill, [(hook, slots) for slots in chunks for hook in words]):
        pass
    return LoadedWindow(epoch, window.start, window.stop, mine + window.start, rows, activations)


class Prefetch:
    """Windows of an endless sequence, one read ahead. A context manager: leaving it ends the thread."""

    def __init__(
        self,
        windows: Iterator[tuple[int, Window]],
        load: Callable[[int, Window, Buffers, Event], LoadedWindow],
        buffers: tuple[Buffers, Buffers],
    ) -> None:
        self._windows = windows
        self._load = load
        self._buffers = buffers
        self._stop = Event()
        # One worker: windows are planned and read strictly one after the other.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="headworks-rows")
        self._pending: Future[LoadedWindow] = self._pool.submit(self._read, buffers[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, buffers: Buffers) -> LoadedWindow:
        epoch, window = next(self._windows)
        return self._load(epoch, window, buffers, self._stop)

    def advance(self) -> LoadedWindow:
        """Wait for the next window. The one before it is given up: its buffers are being refilled from now on.

        Raises:
            Exception: whatever reading the window raised, in the caller's thread.
        """
        window = self._pending.result()
        self._buffers = (self._buffers[1], self._buffers[0])
        self._pending = self._pool.submit(self._read, self._buffers[0])
        return window
