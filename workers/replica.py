"""A replica of what a job loads: one actor, or several that together are one worker to the controller.

The pool starts replicas, hands them units and ends them; how many processes a replica is made of, where they are placed
and how they talk to each other is known here alone. Every call is answered by references: the first one has the answer,
the others are those of the members that work on it too. The first error among them is the error of the call, and the
death of any member is the death of the replica.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from schemas.collect import CollectWorkers
from workers.cluster import NAMESPACE
from workers.pulse import GROUP

FORWARDED = ("HEADWORKS_ALLOWED_IMPORTS", "HEADWORKS_LOG", "HF_HUB_OFFLINE")
"""Variables of the driver that workers must agree with it on. Paths are not among them: nodes have their own."""


class Replica(Protocol):
    """A started worker. Its calls return at once; their references are waited for by the pool."""

    @property
    def loading(self) -> list[Any]:
        """References of the load that ``start_replica`` began; the first gives ``Loaded``."""

    def compute(self, unit: int, attempt: int) -> list[Any]:
        """Begin a unit, behind those that the replica has; the first reference gives its receipt once it is there."""

    def pulses(self) -> list[Any]:
        """References of a ``Pulse`` of every process, which answers whatever it computes."""

    def kill(self) -> None:
        """End every process of the replica and give back where they were placed. May be called again."""


def start_replica(
    name: str, job: Any, limits: CollectWorkers, actor_class: type[Any], task: str, *, calls_at_once: int = 1
) -> Replica:
    """Start a replica and have it load ``job``, which is picklable.

    ``actor_class`` has ``load(job, num_threads)``, and a method called ``task`` that takes a unit and the number of the
    attempt and returns when the unit is committed. ``calls_at_once`` of them run at a time, in threads. Where the
    placement is of several processes, ``job`` is a ``CollectPass`` and these are not asked for.
    """
    if limits.placement == "stages":
        from workers.replica_stages import start_stages

        return start_stages(name, job, limits)
    if limits.placement == "tensor":
        from workers.replica_tensor import start_ranks

        return start_ranks(name, job, limits)
    num_threads = max(1, int(limits.cpus_per_worker))
    options = {**actor_options(limits), "max_concurrency": calls_at_once}
    remote: Any = ray.remote(concurrency_groups={GROUP: 1})(actor_class)  # type: ignore[call-overload]
    actor = remote.options(**options).remote(name)
    return _OneActor(actor, task, [actor.load.remote(job, num_threads)])


@dataclass(frozen=True)
class _OneActor:
    """The whole replica in one process."""

    actor: Any
    task: str
    loading: list[Any]

    def compute(self, unit: int, attempt: int) -> list[Any]:
        return [getattr(self.actor, self.task).remote(unit, attempt)]

    def pulses(self) -> list[Any]:
        return [pulse_of(self.actor)]

    def kill(self) -> None:
        ray.kill(self.actor, no_restart=True)


def pulse_of(actor: Any) -> Any:
    """Reference of the pulse of a process that was started with the concurrency group ``GROUP``."""
    return actor.pulse.options(concurrency_group=GROUP).remote()


def actor_options(limits: CollectWorkers) -> dict[str, Any]:
    """How the actor of one process is started."""
    return {
        "num_cpus": limits.cpus_per_worker,
        "num_gpus": limits.gpus_per_worker,
        # Restarts are decided by the controller, which counts deaths and knows what is missing.
        "max_restarts": 0,
        "max_task_retries": 0,
        "namespace": NAMESPACE,
        "runtime_env": {"env_vars": _environment(max(1, int(limits.cpus_per_worker)))},
    }


def _environment(num_threads: int) -> dict[str, str]:
    """Threads as they are paid for, set before any library counts the cores."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), str(num_threads))
    return threads | {name: os.environ[name] for name in FORWARDED if name in os.environ}
