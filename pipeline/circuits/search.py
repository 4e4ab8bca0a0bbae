"""Search of a mask: descent on one number for each node, through gates that are open or shut.

The loss of a step is the task's loss with shut nodes held at their means, plus ``node_weight`` for each open node (Gao
et al. 2025, arXiv 2511.13653). Letters: M nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random

import torch
from torch import Tensor

from pipeline.circuits.calibration import task_loss
from pipeline.circuits.gate import gate
from pipeline.circuits.network import MaskedNetwork
from pipeline.circuits.tasks.pairs import Pairs
from schemas.circuit import MaskSpec, SearchSpec
from schemas.errors import DivergenceError
from schemas.fingerprint import fingerprint

Step = Callable[[int], None]
"""Called with the number of steps that are done."""

_DRAWN = ("learning_rate", "node_weight", "initial_noise", "initial_bias", "weight_decay", "temperature")


def settings_of(mask: MaskSpec, search: SearchSpec, number: int) -> MaskSpec:
    """The settings of search ``number``: those of ``mask``, from the second search on drawn around them."""
    if number == 0:
        return mask
    draw = Random(f"{search.seed}|settings|{number}")
    drawn = {name: getattr(mask, name) * search.spread ** draw.uniform(-1, 1) for name in _DRAWN}
    drawn["initial_bias"] = max(-1.0, min(1.0, drawn["initial_bias"]))
    return mask.model_copy(update=drawn)


def search_seed(search: SearchSpec, task: str, number: int) -> int:
    """Of one search: first values and batches."""
    return int(fingerprint({"seed": search.seed, "task": task, "number": number})[:15], 16)


def find_mask(network: MaskedNetwork, pairs: Pairs, spec: MaskSpec, *, seed: int, step: Step | None = None) -> Tensor:
    """float32 [M] from -1 to 1 on the CPU: a node is kept where it is above 0, and the rather the higher.

    Raises:
        DivergenceError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(network.nodes.number, generator=generator) * spec.initial_noise + spec.initial_bias
    values = values.clamp(-1, 1).to(network.device).requires_grad_()
    optimiser = torch.optim.AdamW(
        [values], lr=spec.learning_rate, betas=(spec.beta1, spec.beta2), weight_decay=spec.weight_decay, foreach=False
    )
    batches = _batches(len(pairs), spec.batch_pairs, generator)
    for number in range(spec.steps):
        batch = pairs.take(next(batches))
        gates = gate(values, spec.temperature)
        loss = task_loss(network.margins(batch, gates), batch.signs) + spec.node_weight * gates.sum()
        if not loss.isfinite():
            raise DivergenceError(f"the loss of a mask is {loss.item()} at step {number}: look for damaged weights")
        (values.grad,) = torch.autograd.grad(loss, [values])
        torch.nn.utils.clip_grad_norm_([values], spec.max_gradient_norm)
        optimiser.param_groups[0]["lr"] = spec.learning_rate * rate_at(number, spec)
        optimiser.step()
        with torch.no_grad():
            values.clamp_(-1, 1)
        if step is not None:
            step(number + 1)
    return values.detach().cpu()


def rate_at(step: int, spec: MaskSpec) -> float:
    """Share of the learning rate at a step: linearly up in the warm-up, linearly down to 0 at the end."""
    warmup = math.ceil(spec.warmup * spec.steps)
    if step < warmup:
        return (step + 1) / warmup
    return (spec.steps - step) / max(spec.steps - warmup, 1)


def _batches(number: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Numbers of pairs, all of them once before any comes again."""
    size = min(size, number)
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        if len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(number, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]
