"""Losses that autograd differentiates, over dense codes: squared error, a sparsity penalty, what else a kind adds.

    loss = mean over rows of [ ||y - y^||^2 + penalty + auxiliary ]

What is particular to a kind (codes, penalty, auxiliary) is its ``Terms``, one file each.

Letters: B rows, F latents, H targets, S and T their summed widths, of sources and of targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training import shards
from pipeline.training.objective import DEAD_AFTER_TOKENS, ClearMoments, StepFacts
from pipeline.training.resampling import Resampler
from pipeline.training.totals import BatchTotals


class Terms(Protocol):
    """What a kind of dictionary adds to the squared error."""

    def prepare(self, pre_activations: Iterator[torch.Tensor], facts: StepFacts) -> None:
        """Look at the pre-activations [B, F] of the rank's rows first, without gradients; collectives are allowed.

        They are computed as they are asked for: a kind that does not need them leaves the iterator alone.
        """
        ...

    def codes(self, pre_BF: torch.Tensor) -> torch.Tensor:
        """[B, F], or of each target [H, B, F]; differentiable."""
        ...

    def penalty(self, pre_BF: torch.Tensor, codes: torch.Tensor, totals: BatchTotals, facts: StepFacts) -> torch.Tensor:
        """Sparsity of each row with its coefficient, [B], differentiable."""
        ...

    def auxiliary(
        self, pre_BF: torch.Tensor, x_BS: torch.Tensor, y_BT: torch.Tensor, facts: StepFacts
    ) -> torch.Tensor | None:
        """Further loss of each row, [B], differentiable; None: no such. Where ranks hold a dictionary together its
        value is a part of a sum, as the penalty is."""
        ...

    def finish(self, totals: BatchTotals, facts: StepFacts) -> None:
        """After the update."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """See ``objective.Objective``."""
        ...


class DenseObjective:
    """See ``objective.Objective``."""

    def __init__(self, dictionary: Dictionary, terms: Terms, resampler: Resampler | None = None) -> None:
        self._dictionary = dictionary
        self._terms = terms
        self._resampler = resampler
        self._row_losses: list[torch.Tensor] = []

    @property
    def dead_after_tokens(self) -> int:
        """See ``objective.Objective``."""
        return self._resampler.dead_after_tokens if self._resampler else DEAD_AFTER_TOKENS

    @property
    def block_rows(self) -> None:
        """Codes are dense."""

    @torch.no_grad()
    def prepare(self, blocks: Sequence[torch.Tensor], facts: StepFacts) -> None:
        """See ``objective.Objective``."""
        self._row_losses = []
        self._terms.prepare((self._dictionary.pre_activations(x_BS) for x_BS in blocks), facts)

    def accumulate(
        self, block: int, x_BS: torch.Tensor, y_BT: torch.Tensor, totals: BatchTotals, facts: StepFacts
    ) -> None:
        """See ``objective.Objective``."""
        del block
        pre_BF = self._dictionary.pre_activations(x_BS)
        codes = self._terms.codes(pre_BF)
        decoded_BT = shards.decode(self._dictionary, codes, x_BS, facts.world.latents)
        error_B = (decoded_BT - y_BT).square().sum(1)
        penalty_B = self._terms.penalty(pre_BF, codes, totals, facts)
        loss_B = facts.error_weight * error_B + penalty_B
        auxiliary_B = self._terms.auxiliary(pre_BF, x_BS, y_BT, facts)
        if auxiliary_B is not None:
            loss_B = loss_B + auxiliary_B
            totals.auxiliary += auxiliary_B.detach().sum(dtype=torch.float64)
        torch.autograd.backward(loss_B.sum())
        if not facts.once:
            loss_B = loss_B - facts.error_weight * error_B
        self._row_losses.append(loss_B.detach())
        totals.error += facts.once * error_B.detach().sum(dtype=torch.float64)
        totals.penalty += penalty_B.detach().sum(dtype=torch.float64)
        active_BF = codes.detach() > 0
        if active_BF.ndim == 3:
            active_BF = active_BF.any(0)
        totals.num_active += active_BF.sum()
        totals.fired += active_BF.sum(0)

    def normaliser(self, totals: BatchTotals, num_rows: int) -> float:
        """Rows of the global batch."""
        del totals
        return float(num_rows)

    def loss_sum(self, totals: BatchTotals, error_weight: float = 1.0) -> float:
        """See ``objective.Objective``."""
        return error_weight * float(totals.error) + float(totals.penalty) + float(totals.auxiliary)

    def complete_gradients(self) -> None:
        """Autograd left nothing out."""

    @torch.no_grad()
    def finish(
        self, blocks: Sequence[torch.Tensor], totals: BatchTotals, facts: StepFacts, clear_moments: ClearMoments
    ) -> None:
        """See ``objective.Objective``."""
        self._terms.finish(totals, facts)
        if self._resampler is not None and self._resampler.is_due(facts):
            dead_F = facts.dead & (totals.fired == 0)
            self._resampler.resample(torch.cat(list(blocks)), torch.cat(self._row_losses), dead_F, facts, clear_moments)

    def state(self) -> dict[str, torch.Tensor]:
        """See ``objective.Objective``."""
        return self._terms.state() | (self._resampler.state() if self._resampler else {})
