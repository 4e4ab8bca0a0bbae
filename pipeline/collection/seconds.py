"""Where the time of a collection goes: seconds of each stage, and which stage binds the others.

A unit passes read -> forward -> copy -> encode -> write -> commit. Each name stands for the seconds in which that stage
worked on the unit; ``stall_forward``, ``stall_copy``, ``stall_encode``, ``stall_write`` for those in which it could
not, because the stage before it had nothing for it yet or the one behind it had no room. Of a stage with several
threads both are means over its threads, so that work and stall add up to the time between two units.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["read", "forward", "copy", "encode", "write", "commit"]
Seconds = Mapping[str, float]

OVERLAPPED: tuple[Stage, ...] = ("forward", "copy", "encode", "write")
"""Stages that wait for each other; reading and committing are brief and at the ends."""

IDLE_SHARE = 0.5
"""A stage that works less than this share of the time does not bind: something outside does."""


class _Steps:
    """A count that never goes back; one lost between two threads does no harm."""

    done = 0


def steps_done() -> int:
    """Steps of any unit (a batch run, a hook point encoded or written) that this process has done: it goes up as long
    as the process gets on."""
    return _Steps.done


@dataclass
class StageSeconds:
    """Of one unit; stages may add to it from any thread."""

    num_threads: Mapping[str, int] = field(default_factory=dict)
    """Threads of a stage, of one that has several."""
    worked: dict[str, float] = field(default_factory=dict)
    passed: dict[str, float] = field(default_factory=dict)
    """Seconds that a stage's threads gave to the unit, waits included."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def work(self, stage: Stage, seconds: float) -> None:
        """A thread of the stage worked so long."""
        _Steps.done += 1
        with self._lock:
            self.worked[stage] = self.worked.get(stage, 0.0) + seconds / self.num_threads.get(stage, 1)

    def time(self, stage: Stage, seconds: float) -> None:
        """So long was between the ends of two items of a thread, of a stage that overlaps others."""
        with self._lock:
            self.passed[stage] = self.passed.get(stage, 0.0) + seconds / self.num_threads.get(stage, 1)

    def figures(self) -> dict[str, float]:
        """``STAGE`` and, where stages overlapped, ``stall_STAGE``; rounded to microseconds."""
        with self._lock:
            stalls = {
                f"stall_{stage}": max(0.0, self.passed[stage] - self.worked.get(stage, 0.0)) for stage in self.passed
            }
            return {name: round(seconds, 6) for name, seconds in {**self.worked, **stalls}.items()}


def added(units: Iterable[Seconds]) -> dict[str, float]:
    """The seconds of several units together, by name."""
    total: dict[str, float] = {}
    for unit in units:
        for name, seconds in unit.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


@dataclass(frozen=True)
class Binding:
    """What a collection waited for."""

    shares: dict[str, float]
    """Share of the time in which each was in use: ``compute``, ``copy``, ``encode``, ``storage``, ``tokens``."""

    @property
    def binds(self) -> str:
        """The resource that was in use most of the time; ``units`` where none was half of the time: workers waited for
        units to compute. Empty of a collection that computed nothing."""
        if not self.shares:
            return ""
        name, share = max(self.shares.items(), key=lambda item: item[1])
        return name if share >= IDLE_SHARE else "units"

    def words(self, storage: str) -> str:
        """For people, with what to do; ``storage``: ``disk`` or ``network``. Empty where nothing was computed."""
        if not self.shares:
            return ""
        what, remedy = _WORDS[self.binds]
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        return f"{what.format(storage=storage)} binds (in use: {shares}){remedy}"


_WORDS = {
    "compute": ("compute", ""),
    "copy": ("copying from the device", "; fewer hook points, or a narrower storage.dtype, would be faster"),
    "encode": ("encoding", "; more workers.cpus_per_worker, or another storage.codec, would be faster"),
    "storage": ("{storage}", "; faster storage, or a storage.codec that compresses, would be faster"),
    "tokens": ("reading tokens", "; put tokens.output on faster storage"),
    "units": ("waiting for units", "; raise workers.units_in_flight, or storage.shard_rows for a new store"),
}


def binding(seconds: Seconds) -> Binding:
    """Of the added seconds of units that were collected with overlapping stages, by any number of workers."""
    passed = seconds.get("forward", 0.0) + seconds.get("stall_forward", 0.0)
    if not passed:
        return Binding({})
    used = {
        "compute": seconds.get("forward", 0.0),
        "copy": seconds.get("copy", 0.0),
        "encode": seconds.get("encode", 0.0),
        "storage": seconds.get("write", 0.0) + seconds.get("commit", 0.0),
        "tokens": seconds.get("read", 0.0),
    }
    return Binding({name: round(min(1.0, one / passed), 4) for name, one in used.items()})
