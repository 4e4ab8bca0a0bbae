"""ReLU with a tanh or tanh-quad penalty, weighted by decoder norms (``penalties.py``).

Letters: B rows, F latents, S and T widths of sources and targets.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.objective import StepFacts
from pipeline.training.penalties import penalty_of
from pipeline.training.totals import BatchTotals
from schemas.activation import ReluTanh


class ReluTanhTerms:
    """See ``dense.Terms``."""

    def __init__(self, dictionary: Dictionary, activation: ReluTanh) -> None:
        self._penalty = penalty_of(dictionary, activation.penalty)

    def prepare(self, pre_activations: Iterator[torch.Tensor], facts: StepFacts) -> None:
        """See ``dense.Terms``."""
        self._penalty.prepare(map(torch.relu, pre_activations), facts)

    def codes(self, pre_BF: torch.Tensor) -> torch.Tensor:
        """See ``dense.Terms``."""
        return torch.relu(pre_BF)

    def penalty(
        self, pre_BF: torch.Tensor, codes_BF: torch.Tensor, totals: BatchTotals, facts: StepFacts
    ) -> torch.Tensor:
        """See ``dense.Terms``."""
        return self._penalty.of_rows(codes_BF, facts)

    def auxiliary(self, pre_BF: torch.Tensor, x_BS: torch.Tensor, y_BT: torch.Tensor, facts: StepFacts) -> None:
        """There is none."""

    def finish(self, totals: BatchTotals, facts: StepFacts) -> None:
        """Nothing is kept."""

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing is kept."""
        return {}
