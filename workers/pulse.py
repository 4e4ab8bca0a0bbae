"""Whether workers get on with what they do: a count of their steps, asked for now and then.

A unit may take any time, but the worker that has it must get on: run a batch, encode or write an object. One that
does not, or that answers nothing at all, for ``lease_timeout_s`` is taken for dead. If it was only slow and commits
the unit later, nothing is wrong with that: whoever commits first counts, and the bytes are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

GROUP = "pulse"
"""Actors answer for their pulse in a concurrency group of its own: a thread that units never occupy."""

_LONGEST_INTERVAL_S = 15.0


@dataclass(frozen=True)
class Pulse:
    """What a worker says of itself while it computes."""

    steps: int
    """Steps that its process has done so far, of any unit."""
    node: str
    """Ray's name of the node that it runs on."""


def pulse_here(steps: int) -> Pulse:
    """Of this process; every worker class has a method ``pulse`` that returns it, whatever the worker computes."""
    return Pulse(steps, ray.get_runtime_context().get_node_id())


@dataclass
class _Watch:
    """What is known of one worker."""

    asked: list[Any]
    """References of pulses that were not answered yet."""
    asked_s: float
    last_s: float
    """When it last answered with more steps than before, or was given something to do."""
    answered_s: float
    steps: tuple[int, ...] = ()
    nodes: tuple[str, ...] = ()


@dataclass
class Pulses:
    """Of all workers of a pool. Replicas of several processes are alive if all of them answer and any gets on."""

    timeout_s: float
    clock: Callable[[], float] = time.monotonic
    _watched: dict[int, _Watch] = field(default_factory=dict)

    def begin(self, worker: int, asked: list[Any]) -> None:
        """Watch a worker from now on; ``asked``: references of its first pulses."""
        now_s = self.clock()
        self._watched[worker] = _Watch(asked, now_s, now_s, now_s)

    def end(self, worker: int) -> None:
        """The worker is gone."""
        self._watched.pop(worker, None)

    def got_on(self, worker: int) -> None:
        """The worker has answered a call, or was given one."""
        if watch := self._watched.get(worker):
            watch.last_s = watch.answered_s = self.clock()

    def nodes(self, worker: int) -> tuple[str, ...]:
        """Where the worker's processes run; empty until they have answered once."""
        watch = self._watched.get(worker)
        return watch.nodes if watch else ()

    def look(self, ask: Callable[[int], list[Any]]) -> None:
        """Take the answers that have come, and ask (``ask(worker)`` gives references) where it is time to."""
        now_s = self.clock()
        open_calls = [reference for watch in self._watched.values() for reference in watch.asked]
        if not open_calls:
            answered: set[Any] = set()
        else:
            answered = set(ray.wait(open_calls, num_returns=len(open_calls), timeout=0)[0])
        for worker, watch in self._watched.items():
            if watch.asked and answered.issuperset(watch.asked):
                _take(watch, now_s)
            if not watch.asked and now_s - watch.asked_s >= self._interval_s:
                watch.asked, watch.asked_s = ask(worker), now_s

    def hung(self, busy: Callable[[int], bool]) -> list[tuple[int, str]]:
        """Workers that are taken for dead, with the reason; ``busy(worker)``: it has a unit."""
        now_s = self.clock()
        found = []
        for worker, watch in self._watched.items():
            # A worker that never answered may still wait for a place.
            is_silent = bool(watch.nodes) and now_s - watch.answered_s > self.timeout_s
            if is_silent or (busy(worker) and now_s - watch.last_s > self.timeout_s):
                what = "no answer from its process" if is_silent else "no batch, no object"
                found.append((worker, f"{what} for {self.timeout_s:g} s (workers.lease_timeout_s)"))
        return found

    @property
    def _interval_s(self) -> float:
        return min(_LONGEST_INTERVAL_S, self.timeout_s / 4)


def _take(watch: _Watch, now_s: float) -> None:
    """Answers that are errors say nothing here: the pool hears of a death by the calls that it ends."""
    asked, watch.asked = watch.asked, []
    try:
        pulses: list[Pulse] = ray.get(asked)
    except ray.exceptions.RayError:
        return
    watch.answered_s = now_s
    watch.nodes = tuple(pulse.node for pulse in pulses)
    steps = tuple(pulse.steps for pulse in pulses)
    if steps != watch.steps:
        watch.steps, watch.last_s = steps, now_s
