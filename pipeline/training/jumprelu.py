"""JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435; Anthropic, January 2025 update).

    f       = pre * [pre > theta]
    loss    = mean over rows of [ ||y - y^||^2 + penalty(f) + lambda_P * sum_i max(0, theta_i - pre_i) ||W_dec,i|| ]
    penalty = lambda * sum_i [f_i > 0]  (L0), or tanh, or tanh-quad (``penalties.py``)

Thresholds get straight-through gradients (``activations.jumprelu``), from L0 they alone. The last term pulls what is
never on back towards its threshold.

Letters: B rows, F latents, S and T widths of sources and targets.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.dictionaries.activations.jumprelu import JumpReluActivation, is_active, jumprelu
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.objective import StepFacts
from pipeline.training.penalties import Penalty, penalty_of
from pipeline.training.schedule import ramp
from pipeline.training.totals import BatchTotals
from schemas.activation import JumpRelu
from schemas.penalty import L0


class JumpReluTerms:
    """See ``dense.Terms``."""

    def __init__(self, dictionary: Dictionary, activation: JumpRelu) -> None:
        assert isinstance(dictionary.activation, JumpReluActivation)
        self._dictionary = dictionary
        self._function = dictionary.activation
        self._spec = activation
        self._penalty: Penalty | None = None
        if not isinstance(activation.penalty, L0):
            self._penalty = penalty_of(dictionary, activation.penalty)

    def prepare(self, pre_activations: Iterator[torch.Tensor], facts: StepFacts) -> None:
        """See ``dense.Terms``."""
        if self._penalty is not None:
            self._penalty.prepare(map(self.codes, pre_activations), facts)

    def codes(self, pre_BF: torch.Tensor) -> torch.Tensor:
        """See ``dense.Terms``."""
        return jumprelu(pre_BF, self._function.threshold, self._spec.bandwidth)

    def penalty(
        self, pre_BF: torch.Tensor, codes_BF: torch.Tensor, totals: BatchTotals, facts: StepFacts
    ) -> torch.Tensor:
        """See ``dense.Terms``."""
        if self._penalty is not None:
            return self._penalty.of_rows(codes_BF, facts)
        assert isinstance(self._spec.penalty, L0)
        weight = self._spec.penalty.coefficient * ramp(self._spec.penalty.warmup_fraction, facts.progress)
        return weight * is_active(pre_BF, self._function.threshold, self._spec.bandwidth).sum(1)

    def auxiliary(
        self, pre_BF: torch.Tensor, x_BS: torch.Tensor, y_BT: torch.Tensor, facts: StepFacts
    ) -> torch.Tensor | None:
        """The pre-activation loss."""
        if self._spec.pre_activation_coefficient == 0:
            return None
        missing_BF = torch.relu(self._function.threshold - pre_BF)
        return self._spec.pre_activation_coefficient * (missing_BF @ self._dictionary.decoder_norms().sum(1))

    def finish(self, totals: BatchTotals, facts: StepFacts) -> None:
        """Nothing is kept."""

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing is kept."""
        return {}
