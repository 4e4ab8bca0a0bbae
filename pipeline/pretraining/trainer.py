"""One model while it is trained: its loss, its gradients over all ranks, its optimiser and what a checkpoint holds.

The loss is the mean over the tokens that a batch predicts. A rank adds up the losses of its contexts and divides by the
targets of the whole batch, so that sums over ranks, and over forwards, are the mean.

Shapes: B contexts, L tokens of each, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.pretraining.contexts import Contexts, Ints, share_of
from pipeline.pretraining.sparsity import WeightSparsity
from pipeline.training.world import World
from schemas.train_model import TrainModelSpec

_NOT_DECAYED = "bigram"
"""Part of the name of weights that are a matrix and are not decayed."""


@dataclass(frozen=True)
class StepFigures:
    """Of one step, over all ranks."""

    loss: float
    """In nats a token, before the step."""
    gradient_norm: float
    """Before it is clipped or scaled."""
    learning_rate: float
    """That the step was taken with."""


class ModelTrainer:
    """The model on one rank. All ranks call the methods with ``world`` in the same order."""

    def __init__(self, network: nn.Module, spec: TrainModelSpec, device: torch.device, width: int) -> None:
        """``width``: tokens that a forward is padded to."""
        self.network = network.to(device).train()
        self._spec, self._device, self._width = spec, device, width
        # A weight that is used in two places is trained once.
        self._parameters = dict(self.network.named_parameters())
        count = sum(parameter.numel() for parameter in self._parameters.values())
        # All gradients, and the loss behind them: one reduction for everything.
        self._sums = torch.zeros(count + 1, device=device)
        self._bind_gradients()
        self._sparsity = None if spec.sparsity is None else WeightSparsity(spec.sparsity, self.network, spec.steps)
        self._adam = torch.optim.AdamW(
            self._groups(),
            betas=(spec.optimiser.beta1, spec.optimiser.beta2),
            eps=spec.optimiser.epsilon,
            fused=True,
        )
        for parameter in self._parameters.values():
            self._adam.state[parameter] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @property
    def num_parameters(self) -> int:
        """Weights that are trained."""
        return len(self._sums) - 1

    def step(self, contexts: Contexts, batch: Ints, world: World, step: int, learning_rate: float) -> StepFigures:
        """Optimiser step ``step`` (0-based) on the contexts ``batch``, of which this rank runs its share;
        ``learning_rate``: as the schedule has it."""
        if self._sparsity is not None:
            learning_rate *= self._sparsity.learning_rate_factor(step)
        num_targets = int((contexts.lengths[batch] - 1).sum())
        self._sums.zero_()
        for ids, labels in self._forwards(contexts, share_of(batch, world.rank, world.size)):
            loss = self._loss_sum(ids, labels) / num_targets
            torch.autograd.backward(loss)
            self._sums[-1] += loss.detach()
        world.all_reduce_sum(self._sums)
        gradient = self._sums[:-1]
        norm = float(torch.linalg.vector_norm(gradient))
        figures = StepFigures(float(self._sums[-1]), norm, learning_rate)
        # A step on a gradient that is not finite would leave no weight to look at.
        if math.isfinite(figures.loss) and math.isfinite(norm):
            self._apply(gradient, norm, step, learning_rate)
        return figures

    def _apply(self, gradient: Tensor, norm: float, step: int, learning_rate: float) -> None:
        most = self._spec.optimiser.max_gradient_norm
        if self._sparsity is not None:
            self._sparsity.scale_gradients()
        elif most and norm > most:
            gradient.mul_(most / norm)
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._adam.step()
        if self._sparsity is not None:
            decay = self._spec.optimiser.weight_decay
            self._sparsity.project(step, learning_rate=learning_rate, weight_decay=decay)

    def nonzeros(self) -> dict[str, float]:
        """Weights that are not 0 and their share, of those that weight sparsity cuts; nothing without it."""
        if self._sparsity is None:
            return {}
        counts = self._sparsity.counts().values()
        nonzero = sum(count.nonzero for count in counts)
        return {"nonzero": nonzero, "nonzero_share": nonzero / max(1, sum(count.total for count in counts))}

    @torch.no_grad()
    def evaluate(self, contexts: Contexts, world: World) -> float:
        """The loss on all of ``contexts``, in nats a token."""
        self.network.eval()
        total = torch.zeros(1, dtype=torch.float64, device=self._device)
        mine = share_of(np.arange(len(contexts)), world.rank, world.size)
        for ids, labels in self._forwards(contexts, mine):
            total += self._loss_sum(ids, labels).double()
        self.network.train()
        world.all_reduce_sum(total)
        return float(total) / contexts.num_targets

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, live tensors; the number of steps is not among them."""
        found: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            found[f"weight.{name}"] = parameter.data
            found |= {f"{moment}.{name}": self._adam.state[parameter][moment] for moment in ("exp_avg", "exp_avg_sq")}
        return found

    def restore(self, num_steps: int) -> None:
        """Go on after ``num_steps`` steps, once the tensors of ``state`` were overwritten."""
        for moments in self._adam.state.values():
            moments["step"].fill_(num_steps)

    def _forwards(self, contexts: Contexts, mine: Ints) -> Iterator[tuple[Tensor, Tensor]]:
        """``(ids [B, L], labels [B, L - 1])`` of as many contexts as go through the network at a time."""
        most = self._spec.forward_tokens // self._spec.tokens.packing.context_length
        size = min(len(mine), most or self._spec.batch_contexts)
        for first in range(0, len(mine), max(1, size)):
            ids_BL, lengths_B = (
                torch.from_numpy(part) for part in contexts.take(mine[first : first + size], self._width)
            )
            places_L = torch.arange(1, self._width)
            labels_BL = ids_BL[:, 1:].masked_fill(places_L >= lengths_B[:, None], -100)
            yield ids_BL.to(self._device), labels_BL.to(self._device)

    def _loss_sum(self, ids_BL: Tensor, labels_BL: Tensor) -> Tensor:
        half = self._spec.precision == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16) if half else nullcontext():
            logits_BLV = self.network(input_ids=ids_BL).logits
        wanted = logits_BLV[:, :-1].flatten(0, 1).float()
        return cross_entropy(wanted, labels_BL.flatten(), ignore_index=-100, reduction="sum")

    def _bind_gradients(self) -> None:
        first = 0
        for parameter in self._parameters.values():
            parameter.grad = self._sums[first : first + parameter.numel()].view_as(parameter)
            first += parameter.numel()

    def _groups(self) -> list[dict[str, Any]]:
        decayed, others = _split(self._parameters)
        by_hand = self._sparsity is not None and self._sparsity.decays_weights
        decay = 0.0 if by_hand else self._spec.optimiser.weight_decay
        return [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def _split(parameters: Mapping[str, nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Those that lose weight and those that do not."""
    is_decayed = {name: one.ndim >= 2 and _NOT_DECAYED not in name for name, one in parameters.items()}
    return (
        [one for name, one in parameters.items() if is_decayed[name]],
        [one for name, one in parameters.items() if not is_decayed[name]],
    )
