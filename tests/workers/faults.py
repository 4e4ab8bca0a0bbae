"""Collectors that fail on purpose, each fault once: for tests, never imported by the project.

The plan of faults is a folder of empty files ``armed.FAULT.UNIT``; one that has struck is renamed, so that the worker
that takes over does not meet it again.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.collection.prepare import CollectPass
from pipeline.store.objects import Objects
from schemas.errors import ResourceError
from workers.collector import Collector, Receipt
from workers.pool import Loaded


def fires(folder: Path, fault: str, unit: int) -> bool:
    """True once for each armed fault."""
    try:
        (folder / f"armed.{fault}.{unit}").rename(folder / f"fired.{fault}.{unit}")
    except FileNotFoundError:
        return False
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DeadlyObjects(Objects):
    """Storage at whose door the process may die."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url)
        self._folder = folder

    def create(self, key: str, data: Any) -> bool:
        unit = unit_of(key)
        if key.startswith("ledger/") and fires(self._folder, "before_ledger", unit):
            die()
        made = super().create(key, data)
        if key.startswith("activations/") and "/c/" in key and fires(self._folder, "mid_write", unit):
            die()
        if key.startswith("ledger/") and fires(self._folder, "after_ledger", unit):
            die()
        return made


def unit_of(key: str) -> int:
    """Unit of a shard or ledger key, -1 for others."""
    if key.startswith("ledger/"):
        return int(Path(key).stem)
    return int(key.split("/")[-2]) if "/c/" in key else -1


def faulty_collector(folder: Path, pause_s: float = 0.0) -> type[Collector]:
    """A collector class that meets the faults armed in ``folder``; workers unpickle it by value."""

    class FaultyCollector(Collector):
        def load(self, one: CollectPass, num_threads: int) -> Loaded:
            loaded = super().load(one, num_threads)
            (folder / f"pid.{loaded.pid}").touch()
            collector = self._collector
            assert collector is not None
            objects = DeadlyObjects(collector.writer.objects.url, folder)
            self._collector = replace(collector, writer=replace(collector.writer, objects=objects))
            return loaded

        def collect(self, unit: int, attempt: int) -> Receipt:
            if fires(folder, "before_forward", unit):
                die()
            if fires(folder, "error", unit):
                raise RuntimeError(f"a passing trouble in unit {unit}")
            time.sleep(pause_s)
            return super().collect(unit, attempt)

    return FaultyCollector


def failing_collector(error: str) -> type[Collector]:
    """Loads nothing and fails each unit with a ``ResourceError`` (``full``) or a ``RuntimeError``."""

    class FailingCollector(Collector):
        def load(self, one: CollectPass, num_threads: int) -> Loaded:
            return Loaded(dict.fromkeys(one.hook_points, 8), os.getpid(), "here", 0.0)

        def collect(self, unit: int, attempt: int) -> Receipt:
            if error == "full":
                raise ResourceError("the disk of /data is full: free 3 GiB")
            raise RuntimeError(f"always in unit {unit}")

    return FailingCollector
