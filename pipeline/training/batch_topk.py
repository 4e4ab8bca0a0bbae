"""BatchTopK (Bussmann et al. 2024, arXiv 2412.06410) and Matryoshka BatchTopK (Bussmann et al. 2025, arXiv 2503.17547).

    f     = pre where it is among the k * rows largest positive values of the global batch, else 0
    y^_m  = b_dec + sum over the latents of prefix m of f_i W_dec,i                one prefix, all latents: BatchTopK
    loss  = [ mean over m of sum ||y - y^_m||^2 + c * s * sum ||r - r^||^2 ] / sum ||y - mean y||^2

With e_m = y^_m - y, the latents of prefix m that are not in prefix m - 1 see the gradient
2 / M * sum over n >= m of e_n, so the step stays sparse (``sparse.py``; the last term is AuxK).
``activation.threshold``, which decides row by row when training is over, is the mean of the batches' smallest kept
values, the first 1 / (1 - decay) of them alike.

Letters: B rows, F latents, K active latents of a row, S and T widths of sources and targets, M prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from pipeline.dictionaries.activations.batch_topk import BatchTopKActivation
from pipeline.dictionaries.codes import SparseCodes
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.batch_selection import BatchSelection
from pipeline.training.kernels import Kernels
from pipeline.training.objective import ClearMoments, StepFacts
from pipeline.training.sparse import SparsePasses, squares
from pipeline.training.totals import BatchTotals
from schemas.activation import BatchTopK, MatryoshkaBatchTopK


class BatchTopKObjective:
    """See ``objective.Objective``."""

    def __init__(self, dictionary: Dictionary, activation: BatchTopK | MatryoshkaBatchTopK, kernels: Kernels) -> None:
        self._dictionary = dictionary
        self._activation = activation
        self._passes = SparsePasses(dictionary, kernels)
        self._selection = BatchSelection(dictionary.num_latents)
        shares = activation.prefixes if isinstance(activation, MatryoshkaBatchTopK) else [1.0]
        num_latents, first = dictionary.spec.num_latents, dictionary.latents.start
        # Counted from this rank's first latent: below 0 or beyond its last where a prefix ends on another rank.
        self._ends = sorted({max(1, round(share * num_latents)) - first for share in shares})

    @property
    def dead_after_tokens(self) -> int:
        """See ``objective.Objective``."""
        return self._activation.dead_after_tokens

    @property
    def block_rows(self) -> int | None:
        """See ``objective.Objective``."""
        return self._passes.block_rows

    @torch.no_grad()
    def prepare(self, blocks: Sequence[torch.Tensor], facts: StepFacts) -> None:
        """The selection of the global batch; the only use of all pre-activations."""
        found, sizes = [partial(self._above, x_BS) for x_BS in blocks], [len(x_BS) for x_BS in blocks]
        for bound in (self._selection.threshold / 2, 0.0):
            if self._selection.select(found, sizes, self._activation.k * facts.num_rows, bound, facts.world):
                return

    def _above(self, x_BS: torch.Tensor, least: float) -> tuple[torch.Tensor, torch.Tensor]:
        return self._passes.above(self._dictionary.centred(x_BS), least)

    @torch.no_grad()
    def accumulate(
        self, block: int, x_BS: torch.Tensor, y_BT: torch.Tensor, totals: BatchTotals, facts: StepFacts
    ) -> None:
        """See ``objective.Objective``."""
        codes = self._selection[block]
        z_BS = self._dictionary.centred(x_BS)
        parts = [_within(codes, start, end) for start, end in zip([0, *self._ends], self._ends, strict=False)]
        offset_BT = self._passes.offset(x_BS, y_BT, facts)
        errors = []
        for part in parts:
            self._passes.add_decoded(part, offset_BT)
            errors.append(offset_BT if part is parts[-1] else offset_BT.clone())
            facts.world.latents.all_reduce_sum(errors[-1])
        error_BT = errors[-1]
        totals.error += facts.once * squares(error_BT)
        for one in errors[:-1]:
            totals.penalty += facts.once * squares(one)
        self._passes.count(codes, totals)
        grad_BT = torch.zeros_like(error_BT)
        for part, one in zip(reversed(parts), reversed(errors), strict=True):
            grad_BT.add_(one, alpha=2 * facts.error_weight / len(parts))
            self._passes.backward(part, grad_BT, z_BS)
        self._passes.backward_offset(grad_BT, x_BS, facts)
        self._passes.auxiliary(error_BT, z_BS, self._activation, totals, facts)

    def normaliser(self, totals: BatchTotals, num_rows: int) -> float:
        """The batch's total variance."""
        return totals.variance(num_rows)

    def loss_sum(self, totals: BatchTotals, error_weight: float = 1.0) -> float:
        """See ``objective.Objective``; ``totals.auxiliary`` carries its factor s already."""
        mean = (float(totals.error) + float(totals.penalty)) / len(self._ends)
        return error_weight * mean + self._activation.aux_coefficient * float(totals.auxiliary)

    @torch.no_grad()
    def complete_gradients(self) -> None:
        """See ``objective.Objective``."""
        self._passes.complete_gradients()

    @torch.no_grad()
    def finish(
        self, blocks: Sequence[torch.Tensor], totals: BatchTotals, facts: StepFacts, clear_moments: ClearMoments
    ) -> None:
        """The running mean of the threshold."""
        activation = self._dictionary.activation
        assert isinstance(activation, BatchTopKActivation)
        weight = max(1 - self._activation.threshold_decay, 1 / (facts.num_steps + 1))
        activation.threshold.lerp_(activation.threshold.new_tensor(self._selection.threshold), weight)

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing but the threshold, which is the dictionary's."""
        return {}


def _within(codes: SparseCodes, start: int, end: int) -> SparseCodes:
    """Only the latents of start..end active."""
    kept = (codes.indices >= start) & (codes.indices < end)
    return SparseCodes(codes.values * kept, codes.indices)
