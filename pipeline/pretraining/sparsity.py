"""Weight-sparse training: cuts a network's weights after each step of its optimiser.

A trainer makes one ``WeightSparsity`` and calls it in each step, 0-based:

    rate = base_rate(step) * sparsity.learning_rate_factor(step)
    loss.backward()                          # gradients averaged over ranks
    rms = sparsity.scale_gradients()         # in place; the root mean square before
    optimiser.step()                         # with weight_decay = 0 where sparsity.decays_weights
    sparsity.project(step, learning_rate=rate, weight_decay=decay)
    sparsity.counts()                        # group -> (non-zeros, weights), for metrics

There is no state: what a step does is a function of the weights, the gradients and the number of the step. Ranks with
equal weights cut alike, since of equal magnitudes the one with the lower index stays, and a resumed run goes on as if
it had never stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from schemas.weight_sparsity import WeightSparsitySpec

Group = Literal["weights", "embeddings", "biases", "positions"]
NORMALISE_EPSILON = 1e-5
"""Of the authors' script."""

_READS = ("q_proj", "k_proj", "v_proj", "up_proj")
_WRITES = ("o_proj", "down_proj")


class Count(NamedTuple):
    """Weights of one group."""

    nonzero: int
    total: int


@dataclass(frozen=True)
class _Cut:
    """One parameter that is cut."""

    parameter: nn.Parameter
    group: Group
    neuron_axis: int | None
    """Axis that counts neurons or channels of heads; None where no one is owed anything."""


class WeightSparsity:
    """Cuts ``network`` over a run of ``total_steps``; keeps its parameters, which others may change in place."""

    def __init__(self, spec: WeightSparsitySpec, network: nn.Module, total_steps: int) -> None:
        assert total_steps > 0
        self._spec, self._total_steps = spec, total_steps
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._decayed = [
            parameter for name, parameter in network.named_parameters() if parameter.ndim >= 2 and "bigram" not in name
        ]
        self._cuts = _cuts(network)

    @property
    def decays_weights(self) -> bool:
        """``project`` applies weight decay, so the optimiser must not."""
        return self._spec.decay == "after_projection"

    def share(self, step: int) -> float:
        """Share of the weights of each matrix that is kept behind step ``step``."""
        return self._spec.share((step + 1) / self._total_steps)

    def learning_rate_factor(self, step: int) -> float:
        """What the learning rate of step ``step`` is multiplied by."""
        if self._spec.learning_rate == "none":
            return 1.0
        target = self._spec.fraction if self._spec.learning_rate == "relative" else 1.0
        return float((target / self.share(step)) ** 0.5)

    @torch.no_grad()
    def scale_gradients(self) -> float:
        """Scale the gradients in place; the root mean square of the whole gradient before, weights without one as 0."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        size = sum(parameter.numel() for parameter in self._parameters)
        rms: float = nn.utils.get_total_norm(gradients).item() / size**0.5
        limit = self._spec.gradient_rms
        if self._spec.gradient == "normalise":
            factor = limit / (rms + NORMALISE_EPSILON)
        elif self._spec.gradient == "clip" and rms > limit:
            factor = limit / rms
        else:
            return rms
        for gradient in gradients:
            gradient.mul_(factor)
        return rms

    @torch.no_grad()
    def project(self, step: int, *, learning_rate: float = 0.0, weight_decay: float = 0.0) -> None:
        """Set all but the largest weights to 0, behind step ``step`` of the optimiser; then decay, where the spec asks
        for it here."""
        progress = (step + 1) / self._total_steps
        spec = self._spec
        for cut in self._cuts:
            if cut.group == "positions" and spec.positions == "zero":
                cut.parameter.zero_()
                continue
            if self._is_dense(cut.group):
                continue
            target = spec.embedding_fraction if cut.group in ("embeddings", "positions") else spec.fraction
            keep_largest(cut.parameter, spec.share(progress, target=target), spec.survivors, cut.neuron_axis)
        if self.decays_weights and weight_decay:
            for parameter in self._decayed:
                parameter.mul_(1.0 - learning_rate * weight_decay)

    def counts(self) -> dict[Group, Count]:
        """Non-zeros and sizes of the groups of weights that the network has, tied ones counted once."""
        found: dict[Group, Count] = {}
        for cut in self._cuts:
            before = found.get(cut.group, Count(0, 0))
            nonzero = int(torch.count_nonzero(cut.parameter.detach()))
            found[cut.group] = Count(before.nonzero + nonzero, before.total + cut.parameter.numel())
        return found

    def _is_dense(self, group: Group) -> bool:
        return (group == "biases" and self._spec.biases == "dense") or (
            group == "positions" and self._spec.positions == "dense"
        )


def keep_largest(weights: Tensor, share: float, survivors: int, neuron_axis: int | None) -> None:
    """Set all but the int(share * size) largest entries to 0 in place, at least 1 of them; ``survivors`` of every
    neuron, as far as that number reaches for all, are among them."""
    count = max(int(share * weights.numel()), 1)
    if count >= weights.numel():
        return
    scores = weights.detach().abs()
    if neuron_axis is not None:
        by_neuron = scores.movedim(neuron_axis, 0)
        owed = min(survivors, count // by_neuron.shape[0])
        if owed:
            by_neuron.masked_fill_(_largest(by_neuron, min(owed, by_neuron.shape[1])), torch.inf)
    weights.masked_fill_(~_largest(scores.reshape(1, -1), count).view_as(weights), 0.0)


def _largest(scores: Tensor, count: int) -> Tensor:
    """bool [R, N]: the ``count`` largest of each row, of equals the first ones."""
    least = scores.kthvalue(scores.shape[1] - count + 1, dim=1, keepdim=True).values
    above, level = scores > least, scores == least
    return above | (level & (level.cumsum(1) <= count - above.sum(1, keepdim=True)))


def _cuts(network: nn.Module) -> list[_Cut]:
    found = []
    for name, parameter in network.named_parameters():
        *_, module, kind = name.split(".")
        if kind == "bias" and module in (*_READS, *_WRITES):
            found.append(_Cut(parameter, "biases", None))
        elif module in _READS:
            found.append(_Cut(parameter, "weights", 0))
        elif module in _WRITES:
            found.append(_Cut(parameter, "weights", 1))
        elif module in ("embed", "lm_head"):
            found.append(_Cut(parameter, "embeddings", None))
        elif module == "positions":
            found.append(_Cut(parameter, "positions", None))
    return found
