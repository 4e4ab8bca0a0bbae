"""What the losses of sparse codes share: loss and gradient by hand, over active latents but for one product.

    g = 2 (y^ - y)                      a = <g, W_dec[latent]> of each active slot
    dW_dec[latent] += value * g         dW_enc[latent] += a * z         db_enc[latent] += a
    db_dec  = sum g - db_enc W_enc      (the second term where the encoder subtracts b_dec)

AuxK (Gao et al. 2024, arXiv 2406.04093, appendix A.2) adds c * s * ||r - r^||^2: r = y - y^ is held constant, r^
decodes the k_aux largest pre-activations among dead latents, without b_dec; s = min(1, dead / k_aux) keeps a handful of
dead latents from being driven by all of the error.

Letters: B rows, F latents, K active latents of a row, S and T widths of sources and targets.
"""

from __future__ import annotations

import torch

from pipeline.dictionaries import blocks
from pipeline.dictionaries.activations.topk import topk
from pipeline.dictionaries.codes import SparseCodes
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.kernels import Kernels, not_below
from pipeline.training.objective import StepFacts
from pipeline.training.parameters import gradient
from pipeline.training.sharded_topk import keep_largest
from pipeline.training.totals import BatchTotals
from schemas.activation import SelectedLatents

BLOCK_NUMBERS = 2**23
"""Of a block's sources and targets together: 32 MiB in float32."""


class SparsePasses:
    """Forward and backward of one dictionary's sparse half."""

    def __init__(self, dictionary: Dictionary, kernels: Kernels) -> None:
        self._dictionary = dictionary
        self._kernels = kernels
        self._is_whole = all(block.sources == (slice(0, dictionary.encoder.shape[1]),) for block in dictionary.blocks)
        # Reused between steps: giving a buffer of this size back costs more in page faults than the top-k costs.
        self._pre_BF = dictionary.encoder.new_empty(0, dictionary.num_latents).detach()

    @property
    def block_rows(self) -> int | None:
        """See ``objective.Objective``."""
        if self._kernels.has_products or not self._is_whole:
            return None
        dictionary = self._dictionary
        return max(1, BLOCK_NUMBERS // (dictionary.encoder.shape[1] + dictionary.decoder.shape[1]))

    def largest(self, z_BS: torch.Tensor, k: int) -> SparseCodes:
        """The k largest pre-activations of this rank's latents in each row, negative ones cut to 0; all if there are
        fewer."""
        k = min(k, self._dictionary.num_latents)
        if self._is_whole:
            return self._kernels.largest(*self._operands(z_BS), k)
        return topk(self._pre_activations(z_BS), k)

    def above(self, z_BS: torch.Tensor, least: float) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Kernels.above``."""
        if self._is_whole:
            return self._kernels.above(*self._operands(z_BS), least)
        return not_below(self._pre_activations(z_BS), least)

    def _operands(self, z_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dictionary = self._dictionary
        z, encoder = dictionary.operand(z_BS), dictionary.operand(dictionary.encoder)
        # float32 on all devices, but the bits that it has on all.
        b_enc = dictionary.operand(dictionary.b_enc).to(dictionary.b_enc.dtype)
        return z, encoder.detach(), b_enc.detach()

    def _pre_activations(self, z_BS: torch.Tensor) -> torch.Tensor:
        """[B, F], valid until the next call."""
        dictionary = self._dictionary
        if len(z_BS) > len(self._pre_BF):
            self._pre_BF = z_BS.new_empty(len(z_BS), dictionary.num_latents)
        out_BF = self._pre_BF[: len(z_BS)]
        z, encoder, b_enc = self._operands(z_BS)
        blocks.encode_into(out_BF, z.to(out_BF.dtype), encoder.to(out_BF.dtype), b_enc, dictionary.blocks)
        return out_BF

    def offset(self, x_BS: torch.Tensor, y_BT: torch.Tensor, facts: StepFacts) -> torch.Tensor:
        """[B, T] error before any latent: b_dec + skip - y; of ranks that share the dictionary the first one has it."""
        if not facts.once:
            return torch.zeros_like(y_BT)
        error_BT = self._dictionary.b_dec - y_BT
        if self._dictionary.skip is not None:
            error_BT.addmm_(x_BS, self._dictionary.skip.T)
        return error_BT

    def add_decoded(self, codes: SparseCodes, out_BT: torch.Tensor) -> None:
        """Add what the codes decode to."""
        self._kernels.decode(codes, self._dictionary.decoder, out_BT)

    def backward(self, codes: SparseCodes, grad_BT: torch.Tensor, z_BS: torch.Tensor) -> None:
        """Add the gradients of encoder, b_enc and decoder for a gradient of the output."""
        dictionary = self._dictionary
        self._kernels.add_weight_gradients(
            codes,
            self._kernels.code_gradient(codes, dictionary.decoder, grad_BT),
            grad_BT,
            z_BS,
            decoder_grad=gradient(dictionary.decoder),
            encoder_grad=gradient(dictionary.encoder),
            b_enc_grad=gradient(dictionary.b_enc),
        )

    def backward_offset(self, grad_BT: torch.Tensor, x_BS: torch.Tensor, facts: StepFacts) -> None:
        """Add the gradients of b_dec and of the skip, where ``offset`` is."""
        if not facts.once:
            return
        gradient(self._dictionary.b_dec).add_(grad_BT.sum(0))
        if self._dictionary.skip is not None:
            gradient(self._dictionary.skip).addmm_(grad_BT.T, x_BS)

    def complete_gradients(self) -> None:
        """The encoder's part of db_dec, once db_enc is the sum over all ranks."""
        dictionary = self._dictionary
        if dictionary.centres_input:
            gradient(dictionary.b_dec).sub_(gradient(dictionary.b_enc) @ dictionary.encoder)

    def auxiliary(
        self,
        error_BT: torch.Tensor,
        z_BS: torch.Tensor,
        activation: SelectedLatents,
        totals: BatchTotals,
        facts: StepFacts,
    ) -> None:
        """AuxK, where latents are dead."""
        num_slots = min(activation.aux_k, facts.num_dead)
        if num_slots == 0 or activation.aux_coefficient == 0:
            return
        share = num_slots / activation.aux_k
        latents = facts.world.latents
        dead = facts.dead.nonzero().squeeze(1)
        z, encoder, b_enc = self._operands(z_BS)
        # None of this rank's latents may be dead, and it takes part all the same.
        found = SparseCodes(z_BS.new_zeros(len(z_BS), 0), dead.new_zeros(len(z_BS), 0))
        if len(dead):
            found = self._kernels.largest(z, encoder[dead], b_enc[dead], min(num_slots, len(dead)))
        found = keep_largest(found, num_slots, latents)
        codes = SparseCodes(found.values, dead[found.indices])
        # r - r^ = (y - y^) - r^ = -(error + r^), so the error grows by r^ and the gradient keeps its sign.
        missing_BT = error_BT * facts.once
        self.add_decoded(codes, missing_BT)
        latents.all_reduce_sum(missing_BT)
        totals.auxiliary += facts.once * share * squares(missing_BT)
        self.backward(codes, missing_BT.mul_(2 * share * activation.aux_coefficient), z_BS)

    def count(self, codes: SparseCodes, totals: BatchTotals) -> None:
        """Add to the counts of what fired."""
        active_BK = codes.values > 0
        totals.num_active += active_BK.sum()
        totals.fired += torch.bincount(codes.indices[active_BK], minlength=self._dictionary.num_latents)


def first_of(codes: SparseCodes, k: int) -> SparseCodes:
    """The k largest of each row's codes."""
    first = topk(codes.values, min(k, codes.values.shape[1]))
    return SparseCodes(first.values, codes.indices.gather(1, first.indices))


def squares(rows_BT: torch.Tensor) -> torch.Tensor:
    """Sum of squared norms, float64."""
    total: torch.Tensor = torch.linalg.vecdot(rows_BT, rows_BT).sum(dtype=torch.float64)
    return total
