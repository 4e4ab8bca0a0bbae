"""What a job asks of machines: processes with cores, GPUs and memory, stage by stage.

Numbers, cores and GPUs are the job's own fields; memory is what ``headworks plan`` finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.planning.stages import Job, stages
from pipeline.spec_paths import anchored
from schemas.circuit import CircuitSpec
from schemas.collect import CollectSpec
from schemas.errors import SpecError, UserError
from schemas.evaluate import EvaluateSpec
from schemas.interpret import InterpretSpec
from schemas.pipeline import AnyJob, PipelineSpec
from schemas.plan import JobPlan, Limits, PlanAssumptions
from schemas.rendering import RenderSettings
from schemas.shuffle import ShuffleSpec
from schemas.train import TrainSpec
from schemas.train_model import TrainModelSpec

_NO_LIMIT = 2**60


@dataclass(frozen=True)
class Demand:
    """Processes of one job, which are alike."""

    job: str
    number: int | None
    """None: as many as the machines hold."""
    cpus: float
    gpus: float = 0.0
    together: int = 1
    """How many must be on one machine."""
    memory_bytes: int = 0
    flush_bytes: int = 0
    """What one of them may be writing when it is stopped."""
    block_bytes: int = 0
    """Rows that wait in Ray's object store."""
    fills_a_node: bool = False
    """It takes all cores of whichever machine is the largest."""


def demands_of(job: AnyJob, settings: RenderSettings) -> list[list[Demand]]:
    """For each stage what runs at the same time.

    Raises:
        SpecError: memory is not given, and the job cannot be planned on this machine.
    """
    job = anchored(job, Path.cwd())
    jobs = job.resolved() if isinstance(job, PipelineSpec) else [job]
    parts = [[_asked(each) for each in stage.jobs] for stage in stages(jobs)]
    if settings.worker_memory is not None:
        parts = [[replace(one, memory_bytes=settings.worker_memory) for one in part] for part in parts]
    if settings.worker_memory is not None and settings.grace is not None:
        return parts
    planned = _planned(job, jobs, settings)
    return [[_with_plan(one, planned, settings) for one in part] for part in parts]


def _asked(job: Job) -> Demand:
    match job:
        case CollectSpec(workers=workers):
            processes = max(1, workers.processes_per_replica)
            return Demand(
                job.name,
                workers.num_workers * processes or None,
                workers.cpus_per_worker,
                workers.gpus_per_worker,
                together=processes if workers.placement == "tensor" else 1,
            )
        case TrainSpec(workers=ranks) | TrainModelSpec(workers=ranks):
            return Demand(job.name, ranks.num_workers, ranks.cpus_per_worker, float(ranks.use_gpu))
        case ShuffleSpec(workers=shufflers):
            return Demand(job.name, shufflers.num_workers or None, shufflers.cpus_per_worker)
        case CircuitSpec(workers=searches):
            return Demand(job.name, searches.num_workers or None, searches.cpus_per_search, searches.gpus_per_search)
    return Demand(job.name, 1, 1, fills_a_node=True)


def _with_plan(asked: Demand, planned: Mapping[str, Demand], settings: RenderSettings) -> Demand:
    found = planned[asked.job]
    memory = asked.memory_bytes or int(found.memory_bytes * settings.memory_margin)
    return replace(asked, memory_bytes=memory, flush_bytes=found.flush_bytes, block_bytes=found.block_bytes)


def _planned(job: AnyJob, jobs: Sequence[Job], settings: RenderSettings) -> dict[str, Demand]:
    """Job -> memory and bytes of one of its processes."""
    from pipeline.planning.jobs import plan

    assumptions = PlanAssumptions(limits=Limits(memory=_NO_LIMIT, ranks_per_node=1))
    try:
        plans = plan(job, assumptions, runs_here=False).jobs
        found = {each.name: _of_plan(each, plans, settings) for each in jobs}
    except UserError as error:
        given = "grace" if settings.worker_memory is not None else "worker_memory and grace"
        raise SpecError(
            f"what workers take cannot be planned here: {error}\nGive {given} in the settings "
            "(`--setting worker_memory=16GiB --setting grace=1min`), or render where the job's model, corpus and "
            "stores can be seen."
        ) from error
    return {name: one or _evaluation(name, found, settings) for name, one in found.items()}


def _of_plan(job: Job, plans: Sequence[JobPlan], settings: RenderSettings) -> Demand | None:
    """None of an evaluation, an interpretation or a search of circuits, which is not planned."""
    from pipeline.planning.placement import PROCESS_BYTES, process_bytes

    match job:
        case CollectSpec():
            if job.model.path.startswith("python:") and settings.worker_memory is None:
                raise SpecError(f"{job.name}: the memory of {job.model.path} is known only once it is built")
            # A job over several snapshots has a plan for each.
            stores = [one.store for one in plans if one.store is not None and _below(one.output, job.output)]
            return Demand(
                job.name,
                None,
                0,
                memory_bytes=process_bytes(job) + max((one.unit_memory_bytes for one in stores), default=0),
                flush_bytes=max((sum(one.object_bytes.values()) for one in stores), default=0),
            )
        case TrainSpec():
            train = next(one.train for one in plans if one.name == job.name)
            assert train is not None
            on_host = 0 if job.workers.use_gpu else train.memory_bytes
            return Demand(
                job.name,
                None,
                0,
                memory_bytes=PROCESS_BYTES + on_host + train.window_bytes,
                flush_bytes=train.memory_bytes,
                block_bytes=train.block_bytes,
            )
        case TrainModelSpec():
            model = next(one.model for one in plans if one.name == job.name)
            assert model is not None
            on_host = 0 if job.workers.use_gpu else model.memory_bytes
            return Demand(
                job.name, None, 0, memory_bytes=PROCESS_BYTES + on_host, flush_bytes=model.memory_bytes
            )  # fmt: skip
        case ShuffleSpec():
            return Demand(job.name, None, 0, memory_bytes=PROCESS_BYTES + job.workers.memory)
        case EvaluateSpec() | InterpretSpec() | CircuitSpec():
            return None


def _below(url: str, folder: str) -> bool:
    return f"{url.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")


def _evaluation(name: str, found: Mapping[str, Demand | None], settings: RenderSettings) -> Demand:
    """An evaluation holds the model and the dictionaries, so no more than collecting and training together."""
    others = sum(one.memory_bytes for one in found.values() if one is not None)
    if not others and settings.worker_memory is None:
        raise SpecError(
            f"the memory of {name} is not planned: give worker_memory in the settings (--setting worker_memory=16GiB)"
        )
    return Demand(name, 1, 1, memory_bytes=others)
