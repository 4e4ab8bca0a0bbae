"""ReLU with an L1 penalty, in its two forms.

    relu_l1            lambda * sum_i f_i * sum_t ||W_dec,i^t||    (Anthropic, April 2024 update)
    relu_l1_unit_norm  lambda * sum_i f_i,  ||W_dec,i|| = 1        (Bricken et al. 2023, Towards Monosemanticity)

The first sums the norms of a latent's decoder rows over the targets t (one for an SAE; for several it is what makes a
norm at one target go to exactly 0) and constrains nothing. The second needs its constraint: without it f shrinks and
W_dec grows for ever.

Letters: B rows, F latents, S and T widths of sources and targets.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.objective import StepFacts
from pipeline.training.penalties import norms
from pipeline.training.schedule import ramp
from pipeline.training.totals import BatchTotals
from schemas.activation import ReluL1, ReluL1UnitNorm


class ReluL1Terms:
    """See ``dense.Terms``."""

    def __init__(self, dictionary: Dictionary, activation: ReluL1 | ReluL1UnitNorm) -> None:
        self._dictionary = dictionary
        self._activation = activation

    def prepare(self, pre_activations: Iterator[torch.Tensor], facts: StepFacts) -> None:
        """A row's loss depends on the row alone."""

    def codes(self, pre_BF: torch.Tensor) -> torch.Tensor:
        """See ``dense.Terms``."""
        return torch.relu(pre_BF)

    def penalty(
        self, pre_BF: torch.Tensor, codes_BF: torch.Tensor, totals: BatchTotals, facts: StepFacts
    ) -> torch.Tensor:
        """See ``dense.Terms``."""
        weight = self._activation.l1_coefficient * ramp(self._activation.l1_warmup_fraction, facts.progress)
        if isinstance(self._activation, ReluL1UnitNorm):
            return weight * codes_BF.sum(1)
        return weight * (codes_BF @ norms(self._dictionary, self._activation.decoder_norms).sum(1))

    def auxiliary(self, pre_BF: torch.Tensor, x_BS: torch.Tensor, y_BT: torch.Tensor, facts: StepFacts) -> None:
        """There is none."""

    def finish(self, totals: BatchTotals, facts: StepFacts) -> None:
        """Nothing is kept."""

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing is kept."""
        return {}
