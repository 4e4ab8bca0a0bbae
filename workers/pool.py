"""The handles of worker processes, of whatever kind of job. Knows Ray, and nothing of what workers do."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions

from schemas.collect import CollectWorkers
from schemas.errors import ResourceError
from workers.cluster import NAMESPACE, total_resources
from workers.controller import Event, UnitCommitted, UnitFailed, WorkerDied, WorkerFailed, WorkerReady

POLL_INTERVAL_S = 1.0
"""How long a wait for workers lasts at most, so that the display stays alive and Ctrl-C is answered."""

FORWARDED = ("HEADWORKS_ALLOWED_IMPORTS", "HF_HUB_OFFLINE")
"""Variables of the driver that workers must agree with it on. Paths are not among them: nodes have their own."""


@dataclass(frozen=True)
class Loaded:
    """A worker is ready."""

    widths: dict[str, int]
    pid: int
    host: str
    seconds: float


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
    _actors: dict[int, Any] = field(default_factory=dict)
    _calls: dict[Any, _Call] = field(default_factory=dict)

    def start(self, worker: int) -> None:
        """Start an actor and have it load; ``wait`` tells when it has."""
        name = f"{self.actor_class.__name__.lower()}-{worker}"
        num_threads = max(1, int(self.limits.cpus_per_worker))
        actor: Any = (
            ray.remote(self.actor_class)
            .options(
                num_cpus=self.limits.cpus_per_worker,
                num_gpus=self.limits.gpus_per_worker,
                # Restarts are decided by the controller, which counts deaths and knows what is missing.
                max_restarts=0,
                max_task_retries=0,
                namespace=NAMESPACE,
                runtime_env={"env_vars": _environment(num_threads)},
            )
            .remote(name)
        )
        self._actors[worker] = actor
        self._calls[actor.load.remote(self.job, num_threads)] = _Call(worker)

    def lease(self, worker: int, unit: int, attempt: int) -> None:
        """Hand a unit to a worker, behind those that it has."""
        self._calls[getattr(self._actors[worker], self.task).remote(unit, attempt)] = _Call(worker, unit)

    def wait(self, timeout_s: float) -> list[tuple[Event, Any]]:
        """What has happened, with the answer of a call that succeeded; empty when nothing did within the time."""
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        answers = [self._answer(reference) for reference in ready if reference in self._calls]
        return [answer for answer in answers if answer is not None]

    def stop(self, worker: int) -> None:
        """End a worker and forget what it was asked."""
        for reference in [reference for reference, call in self._calls.items() if call.worker == worker]:
            del self._calls[reference]
        if actor := self._actors.pop(worker, None):
            ray.kill(actor, no_restart=True)

    def shutdown(self) -> None:
        """End all workers at once. What they have not committed is computed again by the next run."""
        for worker in list(self._actors):
            self.stop(worker)

    def _answer(self, reference: Any) -> tuple[Event, Any] | None:
        call = self._calls.pop(reference)
        try:
            answer = ray.get(reference)
        except exceptions.RayTaskError as error:
            return _raised(call, error.cause if isinstance(error.cause, Exception) else error), None
        except exceptions.RayActorError as error:
            # Not reachable is as good as dead: the unit may be computed twice, but it is committed once.
            self.stop(call.worker)
            return WorkerDied(call.worker, _first_line(error)), None
        except exceptions.RayError as error:
            return _raised(call, error), None
        if call.unit < 0:
            return WorkerReady(call.worker), answer
        return UnitCommitted(call.worker, call.unit), answer


def _raised(call: _Call, error: Exception) -> Event:
    return WorkerFailed(call.worker, error) if call.unit < 0 else UnitFailed(call.worker, call.unit, error)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _environment(num_threads: int) -> dict[str, str]:
    """Threads as they are paid for, set before any library counts the cores."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), str(num_threads))
    return threads | {name: os.environ[name] for name in FORWARDED if name in os.environ}
