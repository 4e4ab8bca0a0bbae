"""Where a replica of the model goes: decided from the memory that it needs and the memory that machines have.

``auto`` takes the first of these that fits: the whole network in one process, which waits for nobody; on GPUs, split
over the devices of one node; contiguous blocks in several processes. A pass that was begun with split matrix products
is continued so, since anything else would have other low bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped,unused-ignore]
import torch
from torch import nn

from pipeline.models.hooks import find_blocks
from pipeline.models.identity import check_spec
from pipeline.models.load import backbone_of, torch_dtype
from pipeline.models.memory import weights_bytes
from pipeline.models.skeleton import build_skeleton
from pipeline.models.stages import split_layers
from pipeline.models.tensor import require_plan
from schemas.collect import CollectSpec, CollectWorkers, Placement
from schemas.errors import ModelError, ResourceError, SpecError
from schemas.fields import about_bytes

PROCESS_BYTES = 1 << 30
"""What a process takes beside weights: the interpreter with torch and transformers, rows of units, small batches."""

ACTIVATIONS_SHARE = 0.2
"""Room for the activations of a batch, as a share of the weights."""

_SMALL_SHARE = 0.125
"""Of the memory: a network that is smaller is the least of what a process takes, and cutting it would help nobody."""

_MANY_MACHINES = 1024


@dataclass(frozen=True)
class Node:
    """A machine."""

    memory_bytes: int
    num_gpus: int = 0
    gpu_bytes: int = 0
    """Memory of one of its GPUs."""


@dataclass(frozen=True)
class Placed:
    """A decision."""

    placement: Placement
    processes: int
    reason: str

    def applied(self, workers: CollectWorkers) -> CollectWorkers:
        """The workers of a spec with the decision in the place of what was open."""
        number = 0 if self.placement == "replica" else self.processes
        return workers.model_copy(update={"placement": self.placement, "processes_per_replica": number})

    def words(self) -> str:
        """For people."""
        number = f" of {self.processes} processes" if self.processes > 1 else ""
        return f"placement: {self.placement}{number}: {self.reason}"


@dataclass(frozen=True)
class _Need:
    """Bytes of weights."""

    whole: int
    layers: tuple[int, ...] = ()
    """Of each block."""
    embeddings: int = 0
    """Of what the first stage has besides."""

    def largest_stage(self, num_stages: int) -> int:
        stages = split_layers(self.layers, num_stages)
        sizes = [sum(self.layers[layer] for layer in stage) for stage in stages]
        return max([sizes[0] + self.embeddings, *sizes[1:]])


def place(spec: CollectSpec, nodes: Sequence[Node], *, tensor_parallel: int = 0) -> Placed:
    """Where the replicas of ``spec`` go on a cluster of ``nodes``.

    ``tensor_parallel``: of a pass that was begun, the number that it was begun with; 0 of a new one.

    Raises:
        ResourceError: the model fits in no way, or a pass cannot be continued as it was begun.
        ModelError: as ``load_model`` of what has to be known.
    """
    workers = spec.workers
    if tensor_parallel > 1:
        return Placed("tensor", tensor_parallel, "the pass was begun so")
    if workers.placement == "replica" or (workers.placement != "auto" and workers.processes_per_replica):
        return Placed(workers.placement, workers.processes_per_replica or 1, "as the job says")
    whole = _whole_bytes(spec)
    if whole == 0:
        return _unknown(workers, "the size of the model is known only once it is built")
    room = max((_room(workers, node) for node in nodes), default=0)
    if room == 0:
        return _unknown(workers, "no node has room yet")
    what = "a GPU" if workers.gpus_per_worker else "a node"
    said = f"weights of {about_bytes(whole)}, {about_bytes(room)} on {what}"
    if workers.placement == "auto" and (_taken(whole) <= room or whole <= room * _SMALL_SHARE):
        return Placed("replica", 1, f"the model fits ({said})")
    return _several(spec, _need(spec, whole), nodes, said, may_split=not tensor_parallel)


def _several(spec: CollectSpec, need: _Need, nodes: Sequence[Node], said: str, *, may_split: bool) -> Placed:
    """The least number of processes that fits; ``may_split``: no pass was begun with whole matrix products."""
    workers = spec.workers
    is_asked = workers.placement == "tensor"
    if is_asked or (workers.placement == "auto" and workers.gpus_per_worker and may_split):
        if number := _num_ranks(spec, need, workers, nodes):
            return Placed("tensor", number, f"split over the devices of one node ({said})")
        if is_asked:
            raise ResourceError(_misfit(spec, said, "split over any number of devices of one node"))
    if number := _num_stages(spec.model.kind, need, workers, nodes):
        return Placed("stages", number, f"as few as fit ({said})")
    raise ResourceError(_misfit(spec, said, "in any number of stages"))


def placement_note(spec: CollectSpec) -> str:
    """For ``headworks plan``: where a replica goes on any number of machines like this one, and why."""
    try:
        return place(spec, [this_machine()] * _MANY_MACHINES).words()
    except ResourceError as error:
        return f"placement: {error}"


def process_bytes(spec: CollectSpec) -> int:
    """Memory of one process of a replica beside the rows of units, as far as the job says where a replica goes; one
    that is left to ``auto`` is taken to be whole. Without weights where only building the model tells them.

    Raises:
        SpecError: several processes, and how many is left to the machines. ModelError: as ``place``.
    """
    workers = spec.workers
    whole = share = _whole_bytes(spec)
    if workers.placement in ("stages", "tensor") and whole:
        number = workers.processes_per_replica
        if not number:
            raise SpecError(
                f"{spec.name}: placement {workers.placement} leaves to the machines how many processes a replica has: "
                "set workers.processes_per_replica"
            )
        need = _need(spec, whole)
        split = need.embeddings + (need.whole - need.embeddings) // number
        share = split if workers.placement == "tensor" else need.largest_stage(number)
    return _taken(share)


def this_machine() -> Node:
    """Memory and GPUs of the machine that this process runs on."""
    memory = int(psutil.virtual_memory().total)
    number = torch.cuda.device_count()
    size = min((torch.cuda.get_device_properties(index).total_memory for index in range(number)), default=0)
    return Node(memory, number, int(size))


def _unknown(workers: CollectWorkers, why: str) -> Placed:
    return Placed("replica", 1, why) if workers.placement == "auto" else Placed(workers.placement, 2, why)


def _taken(weights: int) -> int:
    return PROCESS_BYTES + int(weights * (1 + ACTIVATIONS_SHARE))


def _room(workers: CollectWorkers, node: Node) -> int:
    """What one process may take."""
    if not workers.gpus_per_worker:
        return node.memory_bytes
    if node.num_gpus < workers.gpus_per_worker:
        return 0
    # A process computes on one GPU; shares of one are the only way to have less.
    return int(node.gpu_bytes * min(1.0, workers.gpus_per_worker))


def _num_processes(workers: CollectWorkers, node: Node, taken: int) -> int:
    """How many processes of that size a node takes by its memory."""
    if _room(workers, node) < taken:
        return 0
    if workers.gpus_per_worker:
        return int(node.num_gpus / workers.gpus_per_worker)
    return node.memory_bytes // taken


def _num_ranks(spec: CollectSpec, need: _Need, workers: CollectWorkers, nodes: Sequence[Node]) -> int:
    """The least number of ranks that fits; 0 where none does."""
    most = max((int(node.num_gpus / (workers.gpus_per_worker or 1)) for node in nodes), default=0)
    for number in range(2, max(most, 2) + 1):
        try:
            require_plan(spec.model, number)
        except ModelError:
            if workers.placement == "tensor" and number == most:
                raise
            continue
        # What is not split (embeddings, norms) is on every rank.
        taken = _taken(need.embeddings + (need.whole - need.embeddings) // number)
        if max((_num_processes(workers, node, taken) for node in nodes), default=0) >= number:
            return number
    return 0


def _num_stages(kind: str, need: _Need, workers: CollectWorkers, nodes: Sequence[Node]) -> int:
    if not need.layers or kind == "vision":
        return 0
    for number in range(2, len(need.layers) + 1):
        taken = _taken(need.largest_stage(number))
        if sum(_num_processes(workers, node, taken) for node in nodes) >= number:
            return number
    return 0


def _misfit(spec: CollectSpec, said: str, how: str) -> str:
    return (
        f"model {spec.model.path} fits neither whole nor {how} ({said}); choose a smaller dtype, a smaller model, more "
        "or larger machines, or set workers.placement and workers.processes_per_replica yourself"
    )


def _whole_bytes(spec: CollectSpec) -> int:
    """Of all weights; 0 where only building the model tells."""
    location, dtype = check_spec(spec.model), torch_dtype(spec.model)
    if location.kind == "python":
        return 0
    if location.kind == "hub":
        return _bytes(build_skeleton(spec.model, location), dtype)
    return weights_bytes(location, dtype)


def _need(spec: CollectSpec, whole: int) -> _Need:
    dtype = torch_dtype(spec.model)
    backbone = backbone_of(build_skeleton(spec.model, check_spec(spec.model)))
    blocks = find_blocks(backbone)
    layers = tuple(_bytes(layer, dtype) for layer in blocks.layers) if blocks else ()
    return _Need(whole, layers, _bytes(backbone, dtype) - sum(layers))


def _bytes(module: nn.Module, dtype: torch.dtype) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) * dtype.itemsize
