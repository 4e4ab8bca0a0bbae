"""ReLU with the decoder-norm weighted L1 penalty (Anthropic, April 2024 update), differentiated by autograd.

    loss = mean over rows of [ ||y - y^||^2 + lambda * sum_i f_i * sum_t ||W_dec,i^t|| ]

The penalty sums the norms of a latent's decoder rows over the targets t (one for an SAE; for several it is what makes
a norm at one target go to exactly 0). Decoder norms are free, nothing is projected.

Letters: B rows, F latents, S and T widths of sources and targets.
"""

from __future__ import annotations

import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.schedule import ramp
from pipeline.training.totals import BatchTotals
from schemas.dictionary import ReluL1


class ReluL1Objective:
    """See ``objective.Objective``."""

    dead_after_tokens = 1_000_000
    """The window in which "dead" is counted; nothing in this loss depends on it."""

    def __init__(self, dictionary: Dictionary, activation: ReluL1) -> None:
        self._dictionary = dictionary
        self._activation = activation

    def accumulate(
        self, x_BS: torch.Tensor, y_BT: torch.Tensor, dead_F: torch.Tensor, totals: BatchTotals, progress: float
    ) -> None:
        """See ``objective.Objective``."""
        del dead_F
        codes_BF = self._dictionary.codes_dense(x_BS)
        error = (self._dictionary.decode(codes_BF, x_BS) - y_BT).square().sum()
        penalty = (codes_BF @ self._decoder_norms()).sum()
        torch.autograd.backward(error + self._weight(progress) * penalty)
        totals.error += error.detach()
        totals.penalty += penalty.detach()
        active_BF = codes_BF.detach() > 0
        totals.num_active += active_BF.sum()
        totals.fired += active_BF.sum(0)

    def normaliser(self, totals: BatchTotals, num_rows: int) -> float:
        """Rows of the global batch."""
        del totals
        return float(num_rows)

    def loss_sum(self, totals: BatchTotals, progress: float) -> float:
        """See ``objective.Objective``."""
        return float(totals.error) + self._weight(progress) * float(totals.penalty)

    def complete_gradients(self) -> None:
        """Autograd left nothing out."""

    def project_weights(self) -> None:
        """No constraint."""

    def _weight(self, progress: float) -> float:
        return self._activation.l1_coefficient * ramp(self._activation.l1_warmup_fraction, progress)

    def _decoder_norms(self) -> torch.Tensor:
        """[F], summed over targets."""
        parts = torch.split(self._dictionary.decoder, list(self._dictionary.d_target.values()), dim=1)
        return torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts]).sum(0)
