"""Deciding where replicas go on the cluster that is there: reads Ray's nodes, and asks a GPU for its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
import torch

from pipeline.collection.prepare import Pending
from pipeline.planning.placement import Node, place
from schemas.collect import CollectWorkers
from workers.cluster import living_nodes
from workers.progress import Progress


def placed(passes: Sequence[Pending], progress: Progress) -> list[Pending]:
    """The passes with a placement in their workers that leaves nothing open; one that lacks nothing stays as it is.

    Raises:
        ResourceError: the model fits in no way. ModelError.
    """
    return [_placed(one, progress) if one.units else one for one in passes]


def nodes_of(workers: CollectWorkers) -> list[Node]:
    """The living nodes, with what Ray gives to processes of their memory."""
    found = [node["Resources"] for node in living_nodes()]
    has_gpus = bool(workers.gpus_per_worker) and any(one.get("GPU", 0) >= workers.gpus_per_worker for one in found)
    gpu_bytes = _gpu_bytes(workers.gpus_per_worker) if has_gpus else 0
    return [Node(int(one.get("memory", 0)), int(one.get("GPU", 0)), gpu_bytes) for one in found]


def _placed(one: Pending, progress: Progress) -> Pending:
    spec = one.of.spec
    found = place(spec, nodes_of(spec.workers), tensor_parallel=one.of.tensor_parallel)
    if found.processes > 1:
        progress.note(f"{spec.name}: {found.words()}")
    workers = found.applied(spec.workers)
    return replace(one, of=replace(one.of, spec=spec.model_copy(update={"workers": workers})))


def _gpu_bytes(share: float) -> int:
    """Memory of one GPU: of this machine, or else of whichever node has one free; all are taken to be alike."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    task: Any = ray.remote(num_cpus=0, num_gpus=share)(_first_gpu_bytes)
    return int(ray.get(task.remote()))


def _first_gpu_bytes() -> int:
    return int(torch.cuda.get_device_properties(0).total_memory)
