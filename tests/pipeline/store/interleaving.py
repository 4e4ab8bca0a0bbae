"""Jobs in threads that take turns at every call to the storage, in an order that a seed decides: races at will.

Only one thread runs at a time; before a call it may hand over to one of those that still run, drawn at random: at every
call, now and then, or seldom, so that one job does a lot while another stands between two calls. So one seed is one
interleaving of two or more jobs, the same each time, and many seeds are many.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.store.disk import DiskBackend

CALLS = ("read", "write", "create", "size", "sizes", "times", "delete")


class Killed(BaseException):
    """Stands for SIGKILL at a call to the storage: nothing of the job runs after it."""


class Turns:
    """Who runs. ``kill_at``: name of a job -> how many calls it may make."""

    def __init__(self, seed: int, kill_at: Mapping[str, int] | None = None) -> None:
        self._random = random.Random(seed)
        self._handover = self._random.choice([1.0, 0.3, 0.1, 0.03])
        self._changed = threading.Condition()
        self._running: list[str] = []
        self._turn = ""
        self._left = dict(kill_at or {})
        self.outcomes: dict[str, BaseException | None] = {}

    def run(self, jobs: Mapping[str, Callable[[], Any]]) -> dict[str, BaseException | None]:
        """Run all jobs to their ends; name -> what it raised."""
        self._running = sorted(jobs)
        threads = [threading.Thread(target=self._job, args=one, name=one[0], daemon=True) for one in jobs.items()]
        self._turn = self._random.choice(self._running)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive(), "a job hangs"
        return self.outcomes

    def _job(self, name: str, job: Callable[[], Any]) -> None:
        self.outcomes[name] = None
        try:
            self.pause()
            job()
        except BaseException as error:  # noqa: BLE001 - what a job ends with is its outcome
            self.outcomes[name] = error
        finally:
            with self._changed:
                self._running.remove(name)
                self._turn = self._random.choice(self._running or [""])
                self._changed.notify_all()

    def pause(self) -> None:
        """Called before each call to the storage, by whatever thread; others than the jobs' pass."""
        name = threading.current_thread().name
        if name not in self._running:
            return
        with self._changed:
            if self._random.random() < self._handover:
                self._turn = self._random.choice(self._running)
                self._changed.notify_all()
            while self._turn != name:
                self._changed.wait()
            self._left[name] = self._left.get(name, 10**9) - 1
            if self._left[name] < 0:
                raise Killed

    def watch(self, monkeypatch: Any) -> None:
        """Pause before every call to a local folder."""
        for call in CALLS:
            monkeypatch.setattr(DiskBackend, call, self._paused(getattr(DiskBackend, call)))

    def _paused(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def paused(*arguments: Any, **options: Any) -> Any:
            self.pause()
            return function(*arguments, **options)

        return paused
