"""TopK with AuxK and Multi-TopK (Gao et al. 2024, arXiv 2406.04093), the gradient by hand (``sparse.py``).

    loss = [ sum ||y - y^||^2 + m * sum ||y - y^_multi||^2 + c * s * sum ||r - r^||^2 ] / sum ||y - mean y||^2

All sums run over the global batch; y^ keeps the k largest pre-activations of a row, y^_multi the multi_k largest; the
last term is AuxK.

Letters: B rows, F latents, K active latents of a row, S and T widths of sources and targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.dictionaries.codes import SparseCodes
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.kernels import Kernels
from pipeline.training.objective import ClearMoments, StepFacts
from pipeline.training.sharded_topk import keep_largest
from pipeline.training.sparse import SparsePasses, first_of, squares
from pipeline.training.totals import BatchTotals
from schemas.activation import TopK


class TopKObjective:
    """See ``objective.Objective``."""

    def __init__(self, dictionary: Dictionary, activation: TopK, kernels: Kernels) -> None:
        self._dictionary = dictionary
        self._activation = activation
        self._passes = SparsePasses(dictionary, kernels)

    @property
    def dead_after_tokens(self) -> int:
        """See ``objective.Objective``."""
        return self._activation.dead_after_tokens

    @property
    def block_rows(self) -> int | None:
        """See ``objective.Objective``."""
        return self._passes.block_rows

    def prepare(self, blocks: Sequence[torch.Tensor], facts: StepFacts) -> None:
        """Nothing: a row's code depends on the row alone."""

    @torch.no_grad()
    def accumulate(
        self, block: int, x_BS: torch.Tensor, y_BT: torch.Tensor, totals: BatchTotals, facts: StepFacts
    ) -> None:
        """See ``objective.Objective``."""
        del block
        z_BS = self._dictionary.centred(x_BS)
        found = self._passes.largest(z_BS, max(self._activation.k, self._activation.multi_k))
        offset_BT = self._passes.offset(x_BS, y_BT, facts)
        first = first_of(found, self._activation.k) if self._activation.multi_k else found
        codes = keep_largest(first, self._activation.k, facts.world.latents)
        error_BT = offset_BT.clone() if self._activation.multi_k else offset_BT
        self._passes.add_decoded(codes, error_BT)
        facts.world.latents.all_reduce_sum(error_BT)
        totals.error += facts.once * squares(error_BT)
        self._passes.count(codes, totals)
        grad_BT = error_BT * (2 * facts.error_weight)
        self._passes.backward(codes, grad_BT, z_BS)
        self._passes.backward_offset(grad_BT, x_BS, facts)
        if self._activation.multi_k:
            self._add_multi(found, offset_BT, x_BS, z_BS, totals, facts)
        self._passes.auxiliary(error_BT, z_BS, self._activation, totals, facts)

    def normaliser(self, totals: BatchTotals, num_rows: int) -> float:
        """The batch's total variance."""
        return totals.variance(num_rows)

    def loss_sum(self, totals: BatchTotals, error_weight: float = 1.0) -> float:
        """See ``objective.Objective``; ``totals.auxiliary`` carries its factor s already."""
        errors = float(totals.error) + self._activation.multi_coefficient * float(totals.penalty)
        return error_weight * errors + self._activation.aux_coefficient * float(totals.auxiliary)

    @torch.no_grad()
    def complete_gradients(self) -> None:
        """See ``objective.Objective``."""
        self._passes.complete_gradients()

    def finish(
        self, blocks: Sequence[torch.Tensor], totals: BatchTotals, facts: StepFacts, clear_moments: ClearMoments
    ) -> None:
        """Nothing is kept."""

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing is kept."""
        return {}

    def _add_multi(
        self,
        found: SparseCodes,
        error_BT: torch.Tensor,
        x_BS: torch.Tensor,
        z_BS: torch.Tensor,
        totals: BatchTotals,
        facts: StepFacts,
    ) -> None:
        codes = keep_largest(found, self._activation.multi_k, facts.world.latents)
        self._passes.add_decoded(codes, error_BT)
        facts.world.latents.all_reduce_sum(error_BT)
        totals.penalty += facts.once * squares(error_BT)
        grad_BT = error_BT.mul_(2 * self._activation.multi_coefficient * facts.error_weight)
        self._passes.backward(codes, grad_BT, z_BS)
        self._passes.backward_offset(grad_BT, x_BS, facts)
