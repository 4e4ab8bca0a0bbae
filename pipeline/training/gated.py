"""Gated dictionaries (Rajamanoharan et al. 2024, arXiv 2404.16014, equation 8).

    f    = [gate > 0] * max(0, magnitude)                                 (``activations.gated``)
    loss = mean over rows of [ ||y - y^(f)||^2 + lambda * sum_i max(0, gate_i) + ||y - y^_frozen(max(0, gate))||^2 ]

The penalty and the last term train the gate, which gets no gradient through f; y^_frozen decodes with W_dec, b_dec and
W_skip held constant, so that the last term does not bend the decoder to codes that the penalty shrinks.

Letters: B rows, F latents, S and T widths of sources and targets.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.dictionaries import blocks
from pipeline.dictionaries.activations.gated import GatedActivation
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training import shards
from pipeline.training.objective import StepFacts
from pipeline.training.schedule import ramp
from pipeline.training.totals import BatchTotals
from schemas.activation import Gated


class GatedTerms:
    """See ``dense.Terms``."""

    def __init__(self, dictionary: Dictionary, activation: Gated) -> None:
        assert isinstance(dictionary.activation, GatedActivation)
        self._dictionary = dictionary
        self._function = dictionary.activation
        self._spec = activation

    def prepare(self, pre_activations: Iterator[torch.Tensor], facts: StepFacts) -> None:
        """A row's loss depends on the row alone."""

    def codes(self, pre_BF: torch.Tensor) -> torch.Tensor:
        """See ``dense.Terms``."""
        return self._function.encode(pre_BF, self._dictionary.b_enc)

    def penalty(
        self, pre_BF: torch.Tensor, codes_BF: torch.Tensor, totals: BatchTotals, facts: StepFacts
    ) -> torch.Tensor:
        """See ``dense.Terms``."""
        weight = self._spec.l1_coefficient * ramp(self._spec.l1_warmup_fraction, facts.progress)
        return weight * torch.relu(pre_BF).sum(1)

    def auxiliary(self, pre_BF: torch.Tensor, x_BS: torch.Tensor, y_BT: torch.Tensor, facts: StepFacts) -> torch.Tensor:
        """The reconstruction from the gate."""
        dictionary = self._dictionary
        frozen_BT = dictionary.b_dec.detach() - y_BT
        if dictionary.skip is not None:
            frozen_BT = frozen_BT + x_BS @ dictionary.skip.detach().T
        decoded_BT = blocks.decode(
            dictionary.operand(torch.relu(pre_BF)), dictionary.operand(dictionary.decoder.detach()), dictionary.blocks
        ).to(y_BT.dtype)
        loss_B = (shards.sum_over(decoded_BT, facts.world.latents) + frozen_BT).square().sum(1)
        return loss_B if facts.once else loss_B - loss_B.detach()

    def finish(self, totals: BatchTotals, facts: StepFacts) -> None:
        """Nothing is kept."""

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing is kept."""
        return {}
