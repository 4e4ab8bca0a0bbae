"""What the tests of losses share: lively weights, the loss and gradients of one objective, ranks in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.dictionaries import initialise
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training import constraint
from pipeline.training.kernels import Kernels, TorchKernels
from pipeline.training.objective import StepFacts
from pipeline.training.objectives import objective_of
from pipeline.training.parameters import flat_gradients, gradient
from pipeline.training.shards import latents_of
from pipeline.training.totals import BatchTotals
from pipeline.training.world import SingleWorld, World
from schemas.dictionary import DictionarySpec

KINDS: dict[str, dict[str, Any]] = {
    "topk": {"kind": "topk", "k": 3, "aux_k": 8, "dead_after_tokens": 300},
    "multi_topk": {"kind": "topk", "k": 3, "multi_k": 12, "aux_k": 8, "dead_after_tokens": 300},
    "batch_topk": {"kind": "batch_topk", "k": 3, "aux_k": 8, "dead_after_tokens": 300},
    "matryoshka": {
        "kind": "matryoshka_batch_topk", "k": 3, "aux_k": 8, "dead_after_tokens": 300, "prefixes": [0.25, 0.5, 1.0],
    },
    "relu_l1": {"kind": "relu_l1", "l1_coefficient": 0.5},
    "relu_l1_unit_norm": {
        "kind": "relu_l1_unit_norm", "l1_coefficient": 0.3, "dead_after_tokens": 300, "resample_at": [0.2, 0.4],
    },
    "p_anneal": {"kind": "relu_p_anneal", "coefficient": 0.3, "anneal_steps": 4},
    "tanh": {"kind": "relu_tanh", "penalty": {"kind": "tanh", "coefficient": 0.5}},
    "tanh_quad": {"kind": "relu_tanh", "penalty": {"kind": "tanh_quad", "coefficient": 0.05, "frequency": 0.1}},
    "jumprelu": {"kind": "jumprelu", "penalty": {"kind": "tanh", "coefficient": 0.5}},
    "jumprelu_l0": {
        "kind": "jumprelu", "threshold": 0.2, "bandwidth": 0.5, "penalty": {"kind": "l0", "coefficient": 0.3},
    },
    "jumprelu_tanh_quad": {"kind": "jumprelu", "penalty": {"kind": "tanh_quad", "coefficient": 0.05}},
    "gated": {"kind": "gated", "l1_coefficient": 0.3},
}  # fmt: skip
"""Settings that learn something in a few hundred steps on rows of 16 channels."""


def build(activation: Mapping[str, Any], *, dtype: torch.dtype = torch.float64, **fields: Any) -> Dictionary:
    """A dictionary of 40 latents whose weights are moved off their start; hook points have 6, 5, 4, ... channels."""
    facts = {"name": "d", "sources": ["a"], "num_latents": 40, "activation": dict(activation), "seed": 3, **fields}
    spec = DictionarySpec.model_validate(facts)
    points = list(dict.fromkeys([*spec.sources, *spec.target_points]))
    widths = {point: 6 - index % 3 for index, point in enumerate(points)}
    dictionary = Dictionary(
        spec, {p: widths[p] for p in spec.sources}, {p: widths[p] for p in spec.target_points},
        dict.fromkeys(points, 1.0), dtype=dtype,
    )  # fmt: skip
    initialise.fill(dictionary, {point: torch.full((widths[point],), 0.3) for point in points})
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            scale = 0.05 if name == "activation.log_threshold" else 0.2
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=dtype), alpha=scale)
        dictionary.zero_outside_blocks()
        if spec.activation.has_unit_decoder:
            constraint.normalise(dictionary)
    return dictionary


def rows(dictionary: Dictionary, num_rows: int = 64, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled sources and targets, the same tensor where they are the same."""
    generator = torch.Generator().manual_seed(seed)
    like = dictionary.b_dec
    x = torch.randn(num_rows, dictionary.encoder.shape[1], generator=generator, dtype=like.dtype) + 0.3
    if not dictionary.spec.is_transcoder:
        return x, x
    return x, torch.randn(num_rows, len(like), generator=generator, dtype=like.dtype)


def measure(
    dictionary: Dictionary,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    dead: torch.Tensor | None = None,
    progress: float = 1.0,
    kernels: Kernels | None = None,
    world: World | None = None,
    num_rows: int | None = None,
    block_rows: int = 20,
    error_weight: float = 1.0,
) -> tuple[float, dict[str, torch.Tensor], BatchTotals]:
    """``(loss, gradients, totals)`` of one objective on these rows, in blocks, before any constraint."""
    flat = flat_gradients(dictionary)
    objective = objective_of(dictionary, kernels or TorchKernels())
    world = world or SingleWorld()
    num_rows = num_rows or len(x)
    dead = torch.zeros(dictionary.num_latents, dtype=torch.bool) if dead is None else dead
    facts = StepFacts(num_rows, 0, progress, dead, int(dead.sum()), world, np.arange(len(x)), error_weight)
    totals = BatchTotals(y.shape[1], dictionary.num_latents, torch.device("cpu"))
    totals.add_target_moments(y.sum(0, dtype=torch.float64), (y * y).sum(dtype=torch.float64))
    sources = torch.split(x, block_rows)
    objective.prepare(sources, facts)
    for index, (x_block, y_block) in enumerate(zip(sources, torch.split(y, block_rows), strict=True)):
        objective.accumulate(index, x_block, y_block, totals, facts)
    world.all_reduce_sum(flat)
    world.all_reduce_sum(totals.flat)
    normaliser = objective.normaliser(totals, num_rows)
    flat.div_(normaliser)
    objective.complete_gradients()
    dictionary.zero_outside_blocks(of_gradients=True)
    gradients = {name: gradient(parameter).clone() for name, parameter in dictionary.named_parameters()}
    return objective.loss_sum(totals, error_weight) / normaliser, gradients, totals


def autograd_of(dictionary: Dictionary, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of a loss written down by hand; 0 where a parameter takes no part."""
    names, parameters = zip(*dictionary.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if grad is None else grad
        for name, parameter, grad in zip(names, parameters, found, strict=True)
    }


class ThreadWorld:
    """One of several ranks that are threads of this process; sums are taken in the order of ranks."""

    rows: World
    latents: World

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, given: list[Any]) -> None:
        self.rank, self.size, self.ranks_per_node = rank, size, size
        self.rows, self.latents = self, SingleWorld()
        self._barrier, self._given = barrier, given

    def all_reduce_sum(self, tensor: torch.Tensor) -> None:
        self._given[self.rank] = tensor
        self._barrier.wait()
        assert len({(one.dtype, one.shape) for one in self._given}) == 1, "ranks disagree on what they reduce"
        total = self._given[0].clone()
        for other in self._given[1:]:
            total += other
        self._barrier.wait()
        tensor.copy_(total)
        self._barrier.wait()

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        self._given[self.rank] = tensor
        self._barrier.wait()
        gathered = torch.stack(self._given)
        self._barrier.wait()
        return gathered

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> None:
        self._given[self.rank] = tensor
        self._barrier.wait()
        found = self._given[src].clone()
        self._barrier.wait()
        tensor.copy_(found)
        self._barrier.wait()

    def barrier(self) -> None:
        self._barrier.wait()

    def abort(self) -> None:
        """Let nobody wait for a rank that failed."""
        for world in (self, self.rows, self.latents):
            world._barrier.abort()  # type: ignore[attr-defined]


def thread_worlds(size: int, latent_shards: int = 1) -> list[ThreadWorld]:
    """A grid of ranks, in the order of ``world.World``."""

    def group(members: int) -> list[ThreadWorld]:
        barrier, given = threading.Barrier(members, timeout=60), [None] * members
        return [ThreadWorld(rank, members, barrier, given) for rank in range(members)]

    worlds = group(size)
    columns = [group(size // latent_shards) for _ in range(latent_shards)]
    for first in range(0, size, latent_shards):
        for shard, latents in enumerate(group(latent_shards)):
            world = worlds[first + shard]
            world.rows, world.latents = columns[shard][first // latent_shards], latents
    return worlds


def on_ranks(size: int, work: Callable[[World], Any], *, latent_shards: int = 1) -> list[Any]:
    """What ``work`` returns on each of ``size`` ranks, of which every ``latent_shards`` hold a dictionary together."""
    worlds = thread_worlds(size, latent_shards)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(worlds[rank])
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            errors.append(error)
            for world in worlds:
                world.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    return results


def shard_of(dictionary: Dictionary, latents: World) -> Dictionary:
    """The part of a whole dictionary that a rank of ``latents`` holds."""
    mine = latents_of(dictionary.spec.num_latents, latents)
    shard = Dictionary(
        dictionary.spec, dictionary.d_source, dictionary.d_target, dictionary.scales, latents=mine,
        dtype=dictionary.b_dec.dtype,
    )  # fmt: skip
    shard.load_state_dict(slice_of(dictionary.state_dict(), dictionary.spec.num_latents, mine))
    return shard


def slice_of(tensors: Mapping[str, torch.Tensor], num_latents: int, latents: range) -> dict[str, torch.Tensor]:
    """Rows of the latents, of all tensors that have a row for each latent; in tests no other size is that number."""
    return {
        name: tensor[latents.start : latents.stop] if tensor.shape[:1] == (num_latents,) else tensor
        for name, tensor in tensors.items()
    }


def shares(num_rows: int, size: int) -> Sequence[slice]:
    """Uneven contiguous shares of a batch, one of them empty where there are four ranks."""
    cuts = {
        1: [0, num_rows],
        2: [0, num_rows // 3, num_rows],
        4: [0, num_rows // 5, num_rows // 2, num_rows // 2, num_rows],
    }
    return [slice(start, stop) for start, stop in zip(cuts[size], cuts[size][1:], strict=False)]
