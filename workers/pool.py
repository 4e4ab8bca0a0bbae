"""The handles of worker processes, of whatever kind of job. Knows Ray, and nothing of what workers do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions

from schemas.collect import CollectWorkers
from schemas.errors import ResourceError
from workers.cluster import total_resources
from workers.decisions import Event, UnitCommitted, UnitFailed, WorkerDied, WorkerFailed, WorkerReady
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


def num_workers(limits: CollectWorkers) -> int:
    """Model replicas to start: as the spec says, else as many as the cluster holds.

    Raises:
        ResourceError: the cluster cannot hold a single one.
    """
    if limits.num_workers:
        return limits.num_workers
    have = total_resources()
    fits = [have.get("CPU", 0.0) / limits.cpus_per_worker]
    if limits.gpus_per_worker:
        fits.append(have.get("GPU", 0.0) / limits.gpus_per_worker)
    if min(fits) < 1:
        raise ResourceError(
            f"one worker needs {limits.cpus_per_worker:g} CPUs and {limits.gpus_per_worker:g} GPUs, the whole cluster "
            f"has {have.get('CPU', 0):g} and {have.get('GPU', 0):g}. Lower workers.cpus_per_worker or "
            "workers.gpus_per_worker, or set workers.num_workers to wait for a cluster that grows."
        )
    return int(min(fits))


@dataclass(frozen=True)
class _Call:
    """What a reference will answer: the load of a worker (``unit`` -1) or a unit."""

    worker: int
    unit: int = -1
    is_answer: bool = True
    """False of a member of the replica that works on the same call: only its failure is of interest."""


@dataclass(frozen=True)
class WorkerPool:
    """Live handles and what they were asked. Turns Ray's answers into events; decides nothing.

    Workers are of any class whose ``load(job, num_threads)`` makes them ready, and whose method ``task``, called with a
    unit and the number of the attempt, returns when the unit is committed.
    """

    job: Any
    """What every worker loads; picklable."""
    limits: CollectWorkers
    actor_class: type[Any]
    task: str
    calls_at_once: int = 1
    """Units that a worker is at work on at a time, each in a thread of its own; more wait."""
    _replicas: dict[int, Replica] = field(default_factory=dict)
    _calls: dict[Any, _Call] = field(default_factory=dict)

    def start(self, worker: int) -> None:
        """Start a replica and have it load; ``wait`` tells when it has."""
        name = f"{self.actor_class.__name__.lower()}-{worker}"
        replica = start_replica(
            name, self.job, self.limits, self.actor_class, self.task, calls_at_once=self.calls_at_once
        )
        self._replicas[worker] = replica
        self._expect(replica.loading, worker)

    def lease(self, worker: int, unit: int, attempt: int) -> None:
        """Hand a unit to a worker, behind those that it has."""
        self._expect(self._replicas[worker].compute(unit, attempt), worker, unit)

    def wait(self, timeout_s: float) -> list[tuple[Event, Any]]:
        """What has happened, with the answer of a call that succeeded; empty when nothing did within the time."""
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        answers = [self._answer(reference) for reference in ready if reference in self._calls]
        return [answer for answer in answers if answer is not None]

    def stop(self, worker: int) -> None:
        """End a worker and forget what it was asked."""
        for reference in [reference for reference, call in self._calls.items() if call.worker == worker]:
            del self._calls[reference]
        if replica := self._replicas.pop(worker, None):
            replica.kill()

    def shutdown(self) -> None:
        """End all workers at once. What they have not committed is computed again by the next run."""
        for worker in list(self._replicas):
            self.stop(worker)

    def _expect(self, references: list[Any], worker: int, unit: int = -1) -> None:
        first, *others = references
        self._calls[first] = _Call(worker, unit)
        self._calls.update({other: _Call(worker, unit, is_answer=False) for other in others})

    def _answer(self, reference: Any) -> tuple[Event, Any] | None:
        call = self._calls.pop(reference)
        try:
            answer = ray.get(reference)
        except exceptions.RayTaskError as error:
            return self._failed(call, error.cause if isinstance(error.cause, Exception) else error), None
        except exceptions.RayError as error:
            return self._failed(call, error), None
        if not call.is_answer:
            return None
        if call.unit < 0:
            return WorkerReady(call.worker), answer
        return UnitCommitted(call.worker, call.unit), answer

    def _failed(self, call: _Call, error: Exception) -> Event:
        if isinstance(error, exceptions.RayActorError):
            # Not reachable is as good as dead: the unit may be computed twice, but it is committed once. Where a member
            # of the replica met the death of another, the replica is dead as well.
            self.stop(call.worker)
            return WorkerDied(call.worker, _first_line(error))
        # What the replica's other members say of the same call is no news.
        same = [other for other, one in self._calls.items() if (one.worker, one.unit) == (call.worker, call.unit)]
        for other in same:
            del self._calls[other]
        return _raised(call, error)


def _raised(call: _Call, error: Exception) -> Event:
    return WorkerFailed(call.worker, error) if call.unit < 0 else UnitFailed(call.worker, call.unit, error)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
