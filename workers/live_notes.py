"""Which of two jobs that run at the same time is the slower, in a line for people."""

from __future__ import annotations

import time

from workers.progress import Progress


class StallNotes:
    """Says so when somebody waits for most of half a minute, and when that ends."""

    PERIOD_S = 30.0

    def __init__(self, name: str, other: str, progress: Progress) -> None:
        self._name = name
        self._other = other
        self._progress = progress
        self._since_s = time.perf_counter()
        self._stalled_s = 0.0
        self._is_stalled = False

    def add(self, stalled_s: float, now_s: float) -> None:
        """``stalled_s``: seconds waited so far, in all."""
        period_s = now_s - self._since_s
        if period_s < self.PERIOD_S:
            return
        waited_s = stalled_s - self._stalled_s
        is_stalled = waited_s > period_s / 2
        if is_stalled and not self._is_stalled:
            self._progress.note(f"{self._name}: waited for {self._other} {waited_s:.0f} of the last {period_s:.0f} s")
        if self._is_stalled and not is_stalled:
            self._progress.note(f"{self._name}: waits for {self._other} no more")
        self._since_s, self._stalled_s, self._is_stalled = now_s, stalled_s, is_stalled
