"""P-annealing (Karvonen et al. 2024, arXiv 2408.00113, section 3).

    loss = mean over rows of [ ||y - y^||^2 + lambda * sum_i f_i^p ]        ||W_dec,i|| = 1

p falls from 1 to ``p_end`` in equal changes. At each, lambda is multiplied by sum f^p / sum f^p' over the last batches,
so that the penalty of the same codes stays what it was. The sums are over global batches.

Letters: B rows, F latents, S and T widths of sources and targets.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.training.objective import StepFacts
from pipeline.training.schedule import ramp
from pipeline.training.totals import BatchTotals
from schemas.activation import ReluPAnneal

QUEUE = 10
"""Batches that the change of lambda is measured on, as in the paper."""
SMALLEST = 1e-5
"""The slope of f^p is not taken below this code: it is infinite at 0."""


class PAnnealTerms:
    """See ``dense.Terms``."""

    def __init__(self, activation: ReluPAnneal, device: torch.device) -> None:
        self._spec = activation
        self._changes = torch.zeros((), dtype=torch.int64, device=device)
        self._factor = torch.ones((), dtype=torch.float64, device=device)
        # Sums of f^p and of f^p' of the last batches, the newest last.
        self._sums = torch.zeros(QUEUE, 2, dtype=torch.float64, device=device)

    def prepare(self, pre_activations: Iterator[torch.Tensor], facts: StepFacts) -> None:
        """A row's loss depends on the row alone."""

    def codes(self, pre_BF: torch.Tensor) -> torch.Tensor:
        """See ``dense.Terms``."""
        return torch.relu(pre_BF)

    def penalty(
        self, pre_BF: torch.Tensor, codes_BF: torch.Tensor, totals: BatchTotals, facts: StepFacts
    ) -> torch.Tensor:
        """See ``dense.Terms``."""
        weight = self._weight(facts)
        changes = int(self._changes)
        powers_B = _powers(codes_BF, self._p(changes))
        totals.power += powers_B.detach().sum(dtype=torch.float64)
        if changes < self._spec.anneal_steps:
            totals.next_power += _powers(codes_BF.detach(), self._p(changes + 1)).sum(dtype=torch.float64)
        return weight * powers_B

    def auxiliary(self, pre_BF: torch.Tensor, x_BS: torch.Tensor, y_BT: torch.Tensor, facts: StepFacts) -> None:
        """There is none."""

    def finish(self, totals: BatchTotals, facts: StepFacts) -> None:
        """Change p and lambda where it is time."""
        if int(self._changes) == self._spec.anneal_steps:
            return
        self._sums.copy_(self._sums.roll(-1, dims=0))
        self._sums[-1] = torch.stack([totals.power, totals.next_power])
        start = self._spec.anneal_start
        due = int((facts.progress - start) / (1 - start) * (self._spec.anneal_steps + 1))
        if due > int(self._changes):
            now, then = self._sums.sum(0)
            if then > 0:
                self._factor *= now / then
            self._changes += 1
            self._sums.zero_()

    def state(self) -> dict[str, torch.Tensor]:
        """See ``objective.Objective``."""
        return {"p_changes": self._changes, "p_factor": self._factor, "p_sums": self._sums}

    def _weight(self, facts: StepFacts) -> float:
        return self._spec.coefficient * ramp(self._spec.warmup_fraction, facts.progress) * float(self._factor)

    def _p(self, changes: int) -> float:
        return 1 - (1 - self._spec.p_end) * changes / self._spec.anneal_steps


def _powers(codes_BF: torch.Tensor, p: float) -> torch.Tensor:
    """sum_i f_i^p, [B]."""
    return (codes_BF.clamp(min=SMALLEST).pow(p) * (codes_BF > 0)).sum(1)
