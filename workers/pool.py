"""The handles of worker processes, of whatever kind of job. Knows Ray, and nothing of what workers do."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions

from pipeline.logs import redacted
from schemas.collect import CollectWorkers
from workers.capacity import Capacity
from workers.cluster import living_nodes
from workers.decisions import (
    CapacityChanged,
    Event,
    UnitCommitted,
    UnitFailed,
    WorkerDied,
    WorkerEvent,
    WorkerFailed,
    WorkerReady,
)
from workers.pulse import Pulses
from workers.replica import Replica, start_replica

POLL_INTERVAL_S = 1.0
"""How long a wait for workers lasts at most, so that the display stays alive and Ctrl-C is answered."""


@dataclass(frozen=True)
class Loaded:
    """A worker is ready."""

    widths: dict[str, int]
    pid: int
    host: str
    seconds: float
    flop_per_token: float = 0.0
    """Operations of the model, see ``pipeline.models.utilisation``; 0: not known."""
    peak_flop_per_s: float = 0.0
    """Of all devices of the worker together; 0: not known."""
    peak_source: str = ""


_LOAD, _PING = -1, -2
"""What a call is for that is for no unit."""
DOUBT_S = 60.0
"""How long Ray may take to find out whether a process that it cannot reach is dead, and its node with it."""
_PAUSE_S = 0.2
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Ray colours the names of tasks."""


@dataclass(frozen=True)
class _Call:
    """What a reference will answer: the load of a worker (``_LOAD``), whether it lives (``_PING``), or a unit."""

    worker: int
    unit: int = _LOAD
    is_answer: bool = True
    """False of a member of the replica that works on the same call: only its failure is of interest."""


@dataclass(frozen=True)
class _Started:
    """A live worker."""

    replica: Replica
    nodes: frozenset[str]
    """All that lived when it was started."""


@dataclass
class WorkerPool:
    """Live handles and what they were asked. Turns Ray's answers into events; decides nothing.

    Workers are of any class whose ``load(job, num_threads)`` makes them ready, whose method ``task``, called with a
    unit and the number of the attempt, returns when the unit is committed, and whose ``pulse()`` tells at any time how
    many steps they have done.
    """

    job: Any
    """What every worker loads; picklable."""
    limits: CollectWorkers
    actor_class: type[Any]
    task: str
    calls_at_once: int = 1
    """Units that a worker is at work on at a time, each in a thread of its own; more wait."""
    _workers: dict[int, _Started] = field(default_factory=dict)
    _calls: dict[Any, _Call] = field(default_factory=dict)
    _doubts: dict[int, float] = field(default_factory=dict)
    """worker -> since when it cannot be reached."""

    def __post_init__(self) -> None:
        self._pulses = Pulses(self.limits.lease_timeout_s)
        self._capacity = Capacity(self.limits)

    def start(self, worker: int) -> None:
        """Start a replica and have it load; ``wait`` tells when it has."""
        name = f"{self.actor_class.__name__.lower()}-{worker}"
        nodes = _living()
        replica = start_replica(
            name, self.job, self.limits, self.actor_class, self.task, calls_at_once=self.calls_at_once
        )
        self._workers[worker] = _Started(replica, nodes)
        self._expect(replica.loading, worker)
        self._pulses.begin(worker, replica.pulses())

    def lease(self, worker: int, unit: int, attempt: int) -> None:
        """Hand a unit to a worker, behind those that it has."""
        if not self._has_units(worker):
            self._pulses.got_on(worker)
        self._expect(self._workers[worker].replica.compute(unit, attempt), worker, unit)

    def wait(self, timeout_s: float) -> list[tuple[Event, Any]]:
        """What has happened, with the answer of a call that succeeded; empty when nothing did within the time."""
        events = self._unasked()
        if events:
            return [(event, None) for event in events]
        if not self._calls:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        if ready and len(self._calls) > 1:  # whatever else has come: one look at all of them costs what one unit does
            ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        answers = [self._answer(reference) for reference in ready if reference in self._calls]
        return [answer for answer in answers if answer is not None]

    def stop(self, worker: int) -> None:
        """End a worker and forget what it was asked."""
        for reference in [reference for reference, call in self._calls.items() if call.worker == worker]:
            del self._calls[reference]
        self._pulses.end(worker)
        self._doubts.pop(worker, None)
        if started := self._workers.pop(worker, None):
            started.replica.kill()

    def shutdown(self) -> None:
        """End all workers at once. What they have not committed is computed again by the next run."""
        for worker in list(self._workers):
            self.stop(worker)

    def _unasked(self) -> list[Event]:
        """What no call tells: workers that do not get on, and another size of the cluster."""
        events: list[Event] = []
        self._pulses.look(lambda worker: self._workers[worker].replica.pulses())
        for worker, reason in self._pulses.hung(self._has_units):
            self.stop(worker)
            events.append(WorkerDied(worker, reason))
        if (number := self._capacity.changed()) is not None:
            events.append(CapacityChanged(number))
        return events

    def _has_units(self, worker: int) -> bool:
        return any(call.worker == worker and call.unit >= 0 for call in self._calls.values())

    def _expect(self, references: list[Any], worker: int, unit: int = _LOAD) -> None:
        first, *others = references
        self._calls[first] = _Call(worker, unit)
        self._calls.update({other: _Call(worker, unit, is_answer=False) for other in others})

    def _answer(self, reference: Any) -> tuple[WorkerEvent, Any] | None:
        call = self._calls.pop(reference)
        try:
            answer = ray.get(reference)
        except exceptions.RayError as error:
            event = self._went_wrong(call, error)
            return None if event is None else (event, None)
        self._pulses.got_on(call.worker)
        if call.unit == _PING:
            # It is there again, but nobody knows what became of the calls that were lost.
            return self._died(call.worker, TimeoutError("it could not be reached for a while")), None
        if not call.is_answer:
            return None
        return (WorkerReady(call.worker) if call.unit == _LOAD else UnitCommitted(call.worker, call.unit)), answer

    def _went_wrong(self, call: _Call, error: exceptions.RayError) -> WorkerEvent | None:
        match error:
            case exceptions.RayTaskError():
                return self._raised(call, error)
            case exceptions.ActorUnavailableError():
                return self._unreachable(call.worker, error)
            case exceptions.RayActorError():
                return self._died(call.worker, error)
            case _:
                return self._failed(call, error)

    def _raised(self, call: _Call, error: exceptions.RayTaskError) -> WorkerEvent:
        if isinstance(error.cause, exceptions.RayActorError):
            # A member of the replica met the death of another: the replica is dead as well.
            return self._died(call.worker, error.cause)
        cause = error.cause if isinstance(error.cause, Exception) else error
        return self._failed(call, cause, traceback=_COLOUR.sub("", str(error)))

    def _failed(self, call: _Call, error: Exception, traceback: str = "") -> WorkerEvent:
        # What the replica's other members say of the same call is no news.
        same = [other for other, one in self._calls.items() if (one.worker, one.unit) == (call.worker, call.unit)]
        for other in same:
            del self._calls[other]
        self._pulses.got_on(call.worker)
        if call.unit < 0:
            return WorkerFailed(call.worker, error)
        return UnitFailed(call.worker, call.unit, error, redacted(traceback))

    def _unreachable(self, worker: int, error: Exception) -> WorkerEvent | None:
        """Dead, or not yet known to be. Its units stay with it until that is known, so that blame falls right."""
        since_s = self._doubts.setdefault(worker, time.monotonic())
        if self._has_lost_its_node(worker) or time.monotonic() - since_s > DOUBT_S:
            return self._died(worker, error)
        if not any(call.worker == worker and call.unit == _PING for call in self._calls.values()):
            time.sleep(_PAUSE_S)
            for reference in self._workers[worker].replica.pulses():
                self._calls[reference] = _Call(worker, _PING)
        return None

    def _died(self, worker: int, error: Exception) -> WorkerDied:
        # Not reachable is as good as dead: the unit may be computed twice, but it is committed once.
        is_preempted = bool(getattr(error, "preempted", False)) or self._has_lost_its_node(worker)
        self.stop(worker)
        return WorkerDied(worker, _first_line(error), is_preempted)

    def _has_lost_its_node(self, worker: int) -> bool:
        """Whether a node has gone that the worker runs on; on which it never said, any that was there."""
        nodes = self._pulses.nodes(worker) or self._workers[worker].nodes
        return not _living().issuperset(nodes)


def _living() -> frozenset[str]:
    return frozenset(str(node["NodeID"]) for node in living_nodes())


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
