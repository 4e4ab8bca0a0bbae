"""How many machines, and what is in each, for what a job asks: pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from deploy.rendering.demand import Demand
from schemas.errors import SpecError
from schemas.pipeline import AnyJob, ClusterSpec, PipelineSpec
from schemas.rendering import RenderSettings

_MEBI = 2**20
RAY_BYTES = 2**30
"""Room for Ray's own processes on a machine."""

SHM_SPARE_BYTES = 64 * _MEBI
"""Of ``/dev/shm``, beside the object store."""

GPU_SHM_BYTES = 2**30
"""The same where processes with GPUs talk to each other through it, as NCCL does."""

LEAST_GRACE_S = 5
STOP_S = 30
"""What Ray's processes have to end after the grace."""


@dataclass(frozen=True)
class Nodes:
    """Machines that are alike."""

    kind: Literal["cpu", "gpu"]
    number: int
    least: int
    """Of those that idle how many are kept."""
    cpus: int
    gpus: int
    memory_bytes: int
    object_store_bytes: int
    shm_bytes: int
    grace_s: int
    """How long a stopped worker goes on writing."""


def nodes_for(
    job: AnyJob, demands: Sequence[Sequence[Demand]], settings: RenderSettings, *, alike: bool = False
) -> list[Nodes]:
    """Machines with GPUs, then those without. ``alike``: one kind does everything.

    Every job of a stage gets machines of its own, and each machine is as large as the largest need, so that any
    scheduler finds room for all.

    Raises:
        SpecError: a number of machines that is not given, or too small.
    """
    has_gpus = any(one.gpus for stage in demands for one in stage)
    groups = {"gpu": _of_kind(demands, True), "cpu": _of_kind(demands, False)}
    if alike or not has_gpus or not any(groups["cpu"]):
        groups = {"gpu" if has_gpus else "cpu": [list(stage) for stage in demands]}
    store = job.cluster.object_store_memory if isinstance(job, PipelineSpec) else ClusterSpec().object_store_memory
    found: list[Nodes] = []
    for kind, stages in groups.items():
        found.append(_nodes("gpu" if kind == "gpu" else "cpu", stages, store, settings))
    return found


def _of_kind(demands: Sequence[Sequence[Demand]], with_gpus: bool) -> list[list[Demand]]:
    """What fills a machine takes one with GPUs if there is any."""
    return [[one for one in stage if bool(one.gpus or one.fills_a_node) == with_gpus] for stage in demands]


def _nodes(
    kind: Literal["cpu", "gpu"], stages: Sequence[Sequence[Demand]], store: int, settings: RenderSettings
) -> Nodes:
    every = [one for stage in stages for one in stage]
    number = _number(stages, settings)
    blocks = max(one.block_bytes for one in every)
    if blocks:
        from workers.live_exchange import SHARE_OF_OBJECT_STORE

        store = max(store, math.ceil(blocks / SHARE_OF_OBJECT_STORE / number))
    each = [(one, per_node(one, settings)) for one in every]
    cpus = max(math.ceil(one.cpus * count - 1e-9) for one, count in each)
    memory = max(one.memory_bytes * count for one, count in each) + store + RAY_BYTES
    flush = max(one.flush_bytes * count for one, count in each)
    grace = settings.grace if settings.grace is not None else math.ceil(flush / settings.write_rate)
    return Nodes(
        kind=kind,
        number=number,
        least=int(any(one.fills_a_node for one in every)),
        cpus=max(cpus, settings.min_cpus),
        gpus=max(math.ceil(one.gpus * count - 1e-6) for one, count in each),
        memory_bytes=math.ceil(memory / _MEBI) * _MEBI,
        object_store_bytes=store,
        shm_bytes=math.ceil((store + (GPU_SHM_BYTES if kind == "gpu" else SHM_SPARE_BYTES)) / _MEBI) * _MEBI,
        grace_s=max(grace, LEAST_GRACE_S),
    )


def per_node(demand: Demand, settings: RenderSettings) -> int:
    """Processes of a job on one machine.

    Raises:
        SpecError: they would tear apart what must be together.
    """
    if demand.fills_a_node:
        return 1
    if settings.workers_per_node is None:
        # As many as share a GPU, so that none stays half empty.
        sharing = int(1 / demand.gpus + 1e-6) if 0 < demand.gpus < 1 else 1
        return max(demand.together, sharing)
    if settings.workers_per_node % demand.together:
        raise SpecError(
            f"workers_per_node is {settings.workers_per_node}, but {demand.together} processes of a replica of "
            f"{demand.job} must be on one machine (workers.processes_per_replica): give a multiple of that"
        )
    return settings.workers_per_node


def _number(stages: Iterable[Sequence[Demand]], settings: RenderSettings) -> int:
    needed, asks = 1, ""
    for stage in stages:
        counts = [math.ceil((one.number or 0) / per_node(one, settings)) for one in stage]
        if sum(counts) > needed:
            needed, asks = sum(counts), " and ".join(one.job for one in stage)
        for one in stage:
            if one.number is None and settings.nodes is None:
                raise SpecError(
                    f"{one.job}: workers.num_workers is 0, which means as many as the machines hold: say how many "
                    "machines there shall be (--nodes N), or set workers.num_workers"
                )
    if settings.nodes is not None and settings.nodes < needed:
        raise SpecError(
            f"nodes is {settings.nodes}, but the workers of {asks} need {needed} machines: raise nodes or "
            "workers_per_node, or lower workers.num_workers"
        )
    return settings.nodes or needed
