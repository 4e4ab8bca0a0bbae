"""JumpReLU with a gate for each target (the code of Ge et al. 2025, arXiv 2509.17196; ``activations.target_gates``).

    f^t  = pre * [pre n^t > theta^t]           n^t norm of the latent's decoder row at target t
    loss = mean over rows of [ ||y - y^||^2 + penalty(f) + lambda_P * sum_i sum_t max(0, theta_i^t - pre_i n_i^t) ]

with the tanh or the tanh-quad penalty, whose norms have gradients; those in gates have none.

Letters: B rows, F latents, H targets, S and T widths of sources and targets.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.dictionaries.activations.target_gates import TargetGates
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.objective import StepFacts
from pipeline.training.penalties import penalty_of
from pipeline.training.totals import BatchTotals
from schemas.activation import JumpRelu
from schemas.penalty import L0


class GatedTargetsTerms:
    """See ``dense.Terms``."""

    def __init__(self, dictionary: Dictionary, activation: JumpRelu) -> None:
        assert isinstance(dictionary.activation, TargetGates)
        assert not isinstance(activation.penalty, L0)
        self._dictionary = dictionary
        self._gates = dictionary.activation
        self._spec = activation
        self._penalty = penalty_of(dictionary, activation.penalty)

    def prepare(self, pre_activations: Iterator[torch.Tensor], facts: StepFacts) -> None:
        """See ``dense.Terms``."""
        self._penalty.prepare(map(self.codes, pre_activations), facts)

    def codes(self, pre_BF: torch.Tensor) -> torch.Tensor:
        """[H, B, F]."""
        return self._gates.trained(pre_BF, self._dictionary.decoder_norms(), self._spec.bandwidth)

    def penalty(self, pre_BF: torch.Tensor, codes: torch.Tensor, totals: BatchTotals, facts: StepFacts) -> torch.Tensor:
        """See ``dense.Terms``."""
        return self._penalty.of_rows(codes, facts)

    def auxiliary(
        self, pre_BF: torch.Tensor, x_BS: torch.Tensor, y_BT: torch.Tensor, facts: StepFacts
    ) -> torch.Tensor | None:
        """The pre-activation loss."""
        if self._spec.pre_activation_coefficient == 0:
            return None
        pairs = zip(self._dictionary.decoder_norms().unbind(1), self._gates.threshold.unbind(1), strict=True)
        missing = [torch.relu(threshold_F - pre_BF * norm_F).sum(1) for norm_F, threshold_F in pairs]
        return self._spec.pre_activation_coefficient * torch.stack(missing).sum(0)

    def finish(self, totals: BatchTotals, facts: StepFacts) -> None:
        """Nothing is kept."""

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing is kept."""
        return {}
