"""Workers that fail on purpose, each fault once: for tests, never imported by the project.

The plan of faults is a folder of empty files ``armed.FAULT.UNIT``; one that has struck is renamed, so that the worker
that takes over does not meet it again. ``VICTIM.POINT`` as FAULT kills a process at a point of a unit: that of the
worker itself, its node's raylet, or the controller or driver, whose numbers lie in ``pid.VICTIM``.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.store.objects import Objects
from schemas.errors import ResourceError
from workers.pool import Loaded

if TYPE_CHECKING:  # torch is imported only where a model is run
    from pipeline.collection.prepare import CollectPass
    from workers.collector import Collector, Receipt
    from workers.replica_stages import Stage

VICTIMS = ("worker", "node", "controller", "driver")
POINTS = ("before_encode", "mid_write", "before_ledger", "after_ledger")


def fires(folder: Path, fault: str, unit: int) -> bool:
    """True once for each armed fault."""
    try:
        (folder / f"armed.{fault}.{unit}").rename(folder / f"fired.{fault}.{unit}")
    except FileNotFoundError:
        return False
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def strike(folder: Path, point: str, unit: int) -> None:
    """Kill whoever is to die at this point of this unit."""
    if fires(folder, point, unit) or fires(folder, f"worker.{point}", unit):
        die()
    if fires(folder, f"node.{point}", unit):
        if not (folder / f"keep.{os.getppid()}").exists():  # the head, without which there is no cluster
            os.kill(os.getppid(), signal.SIGKILL)
        die()
    for victim in ("controller", "driver"):
        if fires(folder, f"{victim}.{point}", unit):
            with suppress(ProcessLookupError, FileNotFoundError):
                os.kill(int((folder / f"pid.{victim}").read_text()), signal.SIGKILL)


class DeadlyObjects(Objects):
    """Storage at whose door processes may die."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url)
        self._folder = folder

    def create(self, key: str, data: Any) -> bool:
        unit = unit_of(key)
        if key.startswith("ledger/"):
            strike(self._folder, "before_ledger", unit)
        made = super().create(key, data)
        if key.startswith("activations/") and "/c/" in key:
            strike(self._folder, "mid_write", unit)
        if key.startswith("ledger/"):
            strike(self._folder, "after_ledger", unit)
        return made


def unit_of(key: str) -> int:
    """Unit of a shard or ledger key, -1 for others."""
    if key.startswith("ledger/"):
        return int(Path(key).stem)
    return int(key.split("/")[-2]) if "/c/" in key else -1


def faulty_collector(folder: Path, pause_s: float = 0.0) -> type[Collector]:
    """A collector class that meets the faults armed in ``folder``; workers unpickle it by value."""
    from workers.collector import Collector

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
            strike(folder, "before_encode", unit)
            if fires(folder, "error", unit):
                raise RuntimeError(f"a passing trouble in unit {unit}")
            time.sleep(pause_s)
            return super().collect(unit, attempt)

    return FaultyCollector


def deadly_stage(folder: Path) -> type[Stage]:
    """A stage class that meets the faults armed in the folder ``stage.INDEX`` below ``folder``."""
    import ray

    from pipeline.collection import parts
    from workers.member import UNITS
    from workers.replica_stages import Stage

    class DeadlyStage(Stage):
        def __init__(self, name: str, index: int, num_stages: int, before: Any) -> None:
            super().__init__(name, index, num_stages, before)
            self._folder = folder / f"stage.{index}"

        def load(self, one: CollectPass, num_threads: int) -> None:
            opened = parts.PartCollector.open

            def opened_deadly(*arguments: Any, **more: Any) -> parts.PartCollector:
                collector = opened(*arguments, **more)
                objects = DeadlyObjects(collector.whole.objects.url, self._folder)
                return replace(collector, whole=replace(collector.whole, objects=objects))

            parts.PartCollector.open = opened_deadly  # type: ignore[assignment, method-assign]  # in this process
            super().load(one, num_threads)

        @ray.method(concurrency_group=UNITS)
        def begin(self, unit: int, attempt: int, others: list[Any]) -> None:
            strike(self._folder, "before_encode", unit)
            super().begin(unit, attempt, others)

    return DeadlyStage


def failing_collector(error: str) -> type[Collector]:
    """Loads nothing and fails each unit with a ``ResourceError`` (``full``) or a ``RuntimeError``."""
    from workers.collector import Collector

    class FailingCollector(Collector):
        def load(self, one: CollectPass, num_threads: int) -> Loaded:
            return Loaded(dict.fromkeys(one.hook_points, 8), os.getpid(), "here", 0.0)

        def collect(self, unit: int, attempt: int) -> Receipt:
            if error == "full":
                raise ResourceError("the disk of /data is full: free 3 GiB")
            raise RuntimeError(f"always in unit {unit}")

    return FailingCollector
