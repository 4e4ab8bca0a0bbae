"""What a job asks of a cluster: processes, cores and GPUs that run at the same time, from its resource fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from schemas.circuit import CircuitSpec
from schemas.collect import CollectSpec
from schemas.evaluate import EvaluateSpec
from schemas.interpret import InterpretSpec
from schemas.pipeline import AnyJob, PipelineSpec, Single
from schemas.shuffle import ShuffleSpec
from schemas.train import TrainSpec
from schemas.train_model import TrainModelSpec


class Limits(Protocol):
    """``deploy.service.policy.Greatest``."""

    @property
    def workers(self) -> int | None: ...

    @property
    def cpus(self) -> float | None: ...

    @property
    def gpus(self) -> float | None: ...


@dataclass(frozen=True)
class Demand:
    """Resources at one time."""

    workers: int = 0
    cpus: float = 0.0
    gpus: float = 0.0

    def __add__(self, other: Demand) -> Demand:
        return Demand(self.workers + other.workers, self.cpus + other.cpus, self.gpus + other.gpus)


def problems(job: AnyJob, greatest: Limits) -> Iterator[str]:
    """What is more than one job may ask for, or is not said though there is a limit; with the field.

    Tokenising and evaluating take what is free on the cluster and ask for nothing that a limit could hold to.
    """
    limits = {"workers": greatest.workers, "cpus": greatest.cpus, "gpus": greatest.gpus}
    if all(limit is None for limit in limits.values()):
        return
    jobs: list[Single] = job.resolved() if isinstance(job, PipelineSpec) else [job]
    for index, each in enumerate(jobs):
        path = f"jobs[{index}].workers" if isinstance(job, PipelineSpec) else "workers"
        if open_field := _left_open(each):
            yield f"{path}.{open_field}"
            continue
        beside = [other for other in jobs if _is_fed_by(other, each)]
        asked = sum((demand_of(other) for other in beside if not _left_open(other)), demand_of(each))
        for what, limit in limits.items():
            got = getattr(asked, what)
            if limit is not None and got > limit:
                also = f" together with {', '.join(other.name for other in beside)}" if beside else ""
                yield (
                    f"{path}: {each.name}{also} asks for {got:g} {what}, at most {limit:g} are allowed; lower "
                    f"num_workers or what each worker takes, or ask the operator for more"
                )


def demand_of(job: Single) -> Demand:
    """Of one job whose fields say it."""
    match job:
        case CollectSpec():
            workers = job.workers
            count = workers.num_workers * max(1, workers.processes_per_replica)
            return Demand(count, count * workers.cpus_per_worker, count * workers.gpus_per_worker)
        case ShuffleSpec():
            return Demand(job.workers.num_workers, job.workers.num_workers * job.workers.cpus_per_worker)
        case TrainSpec() | TrainModelSpec():
            count = job.workers.num_workers
            return Demand(count, count * job.workers.cpus_per_worker, count if job.workers.use_gpu else 0)
        case CircuitSpec(workers=searches):
            count = searches.num_workers
            return Demand(count, count * searches.cpus_per_search, count * searches.gpus_per_search)
        case EvaluateSpec() | InterpretSpec():
            return Demand(1)


def _left_open(job: Single) -> str:
    """The field that leaves the demand to the cluster, and what to do; empty if there is none."""
    if isinstance(job, CollectSpec | ShuffleSpec | CircuitSpec) and not job.workers.num_workers:
        return "num_workers: 0 takes the whole cluster, and there is a limit for one job; give the number"
    if isinstance(job, CollectSpec) and job.workers.placement == "auto":
        return (
            "placement: auto may spread a replica over several processes, and there is a limit for one job; say "
            "replica, or stages or tensor with processes_per_replica"
        )
    if isinstance(job, CollectSpec) and job.workers.placement != "replica" and not job.workers.processes_per_replica:
        return "processes_per_replica: 0 leaves the number open, and there is a limit for one job; give the number"
    return ""


def _is_fed_by(job: Single, other: Single) -> bool:
    """A training that runs while the store is collected that it reads."""
    return (
        isinstance(job, TrainSpec)
        and isinstance(other, CollectSpec)
        and job.feed != "stored"
        and other.output in job.store_urls
    )
