"""Rates of a run: since the last question, and over all."""

from __future__ import annotations

import time


class Clock:
    """Counts from its creation; ``rows`` are those of the whole run, resumed parts included."""

    def __init__(self, rows: int) -> None:
        self._first = self._last = (time.perf_counter(), rows)

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
