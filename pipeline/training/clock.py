"""Rates of a run: since the last question, and over all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Counts from its creation; ``rows`` are those of the whole run, resumed parts included."""

    def __init__(self, rows: int) -> None:
        self._first = self._last = (time.perf_counter(), rows)
        self._stalled_s = self._noted_stalled_s = 0.0

    @contextmanager
    def stall(self) -> Iterator[None]:
        """Count the time of the block as time in which training had nothing to do."""
        begun = time.perf_counter()
        yield
        self._stalled_s += time.perf_counter() - begun

    @property
    def stalled_s(self) -> float:
        """Seconds of all such blocks."""
        return self._stalled_s

    def newly_stalled_s(self) -> float:
        """Of those since the last call."""
        found = self._stalled_s - self._noted_stalled_s
        self._noted_stalled_s = self._stalled_s
        return found

    def rate(self, rows: int) -> float:
        """Rows per second since the last call."""
        now = (time.perf_counter(), rows)
        seconds, done = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        return done / max(seconds, 1e-9)

    def total(self, rows: int) -> tuple[float, float]:
        """``(seconds, rows per second)`` of this process."""
        seconds = time.perf_counter() - self._first[0]
        return seconds, (rows - self._first[1]) / max(seconds, 1e-9)
