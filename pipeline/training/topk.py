"""TopK with AuxK (Gao et al. 2024, arXiv 2406.04093): loss and gradient, by hand, sparse but for one product.

    loss = [ sum ||y - y^||^2 + c * s * sum ||r - r^||^2 ] / sum ||y - mean y||^2        sums over the global batch

r = y - y^ is held constant; r^ decodes the k_aux largest pre-activations among dead latents, without b_dec; c is
``aux_coefficient``; s = min(1, dead / k_aux) keeps a handful of dead latents from being driven by all of the error.
Only active slots have a gradient, in the encoder too, so nothing but the pre-activations is ever dense:

    g = 2 (y^ - y)                      a = <g, W_dec[latent]> of each active slot
    dW_dec[latent] += value * g         dW_enc[latent] += a * z         db_enc[latent] += a
    db_dec  = sum g - db_enc W_enc      (the second term where the encoder subtracts b_dec)

Decoder rows stay on the unit sphere: the gradient's radial part is removed, rows are normalised after each update.

Letters: B rows, F latents, K active latents of a row, S and T widths of sources and targets.
"""

from __future__ import annotations

import torch

from pipeline.dictionaries import activations
from pipeline.dictionaries.codes import SparseCodes
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.kernels import Kernels
from pipeline.training.parameters import gradient
from pipeline.training.totals import BatchTotals
from schemas.dictionary import TopK


class TopKObjective:
    """See ``objective.Objective``."""

    def __init__(self, dictionary: Dictionary, activation: TopK, kernels: Kernels) -> None:
        self._dictionary = dictionary
        self._activation = activation
        self._kernels = kernels
        # Reused between steps: giving a buffer of this size back costs more in page faults than the top-k costs.
        self._pre_BF = dictionary.encoder.new_empty(0, dictionary.num_latents).detach()

    @property
    def dead_after_tokens(self) -> int:
        """See ``objective.Objective``."""
        return self._activation.dead_after_tokens

    @torch.no_grad()
    def accumulate(
        self, x_BS: torch.Tensor, y_BT: torch.Tensor, dead_F: torch.Tensor, totals: BatchTotals, progress: float
    ) -> None:
        """See ``objective.Objective``."""
        del progress  # the sparsity of TopK is exact from the first step on
        dictionary = self._dictionary
        z_BS = dictionary.centred(x_BS)
        pre_BF = self._pre_activations(z_BS)
        codes = activations.topk(pre_BF, self._activation.k)
        error_BT = dictionary.b_dec.expand_as(y_BT).contiguous()
        if dictionary.skip is not None:
            error_BT.addmm_(x_BS, dictionary.skip.T)
        self._kernels.decode(codes, dictionary.decoder, error_BT)
        error_BT -= y_BT

        totals.error += torch.linalg.vecdot(error_BT, error_BT).sum(dtype=torch.float64)
        active_BK = codes.values > 0
        totals.num_active += active_BK.sum()
        totals.fired += torch.bincount(codes.indices[active_BK], minlength=dictionary.num_latents)

        grad_BT = error_BT * 2
        self._backward(codes, grad_BT, z_BS)
        gradient(dictionary.b_dec).add_(grad_BT.sum(0))
        if dictionary.skip is not None:
            gradient(dictionary.skip).addmm_(grad_BT.T, x_BS)
        self._auxiliary(pre_BF, error_BT, z_BS, dead_F, totals)

    def normaliser(self, totals: BatchTotals, num_rows: int) -> float:
        """The batch's total variance."""
        return totals.variance(num_rows)

    def loss_sum(self, totals: BatchTotals, progress: float) -> float:
        """See ``objective.Objective``; ``totals.auxiliary`` carries its factor s already."""
        del progress
        return float(totals.error) + self._activation.aux_coefficient * float(totals.auxiliary)

    @torch.no_grad()
    def complete_gradients(self) -> None:
        """The encoder's part of db_dec, and no radial part in dW_dec."""
        dictionary = self._dictionary
        if dictionary.centres_input:
            gradient(dictionary.b_dec).sub_(gradient(dictionary.b_enc) @ dictionary.encoder)
        grad_FT = gradient(dictionary.decoder)
        radial_F = torch.linalg.vecdot(grad_FT, dictionary.decoder)
        grad_FT.addcmul_(radial_F[:, None], dictionary.decoder, value=-1)

    @torch.no_grad()
    def project_weights(self) -> None:
        """Decoder rows to norm 1."""
        norms_F = torch.linalg.vector_norm(self._dictionary.decoder, dim=1, keepdim=True)
        self._dictionary.decoder.div_(norms_F.clamp_(min=torch.finfo(norms_F.dtype).tiny))

    def _pre_activations(self, z_BS: torch.Tensor) -> torch.Tensor:
        dictionary = self._dictionary
        if len(z_BS) > len(self._pre_BF):
            self._pre_BF = z_BS.new_empty(len(z_BS), dictionary.num_latents)
        return torch.addmm(dictionary.b_enc, z_BS, dictionary.encoder.T, out=self._pre_BF[: len(z_BS)])

    def _backward(self, codes: SparseCodes, grad_BT: torch.Tensor, z_BS: torch.Tensor) -> None:
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

    def _auxiliary(
        self,
        pre_BF: torch.Tensor,
        error_BT: torch.Tensor,
        z_BS: torch.Tensor,
        dead_F: torch.Tensor,
        totals: BatchTotals,
    ) -> None:
        dead = dead_F.nonzero().squeeze(1)
        num_slots = min(self._activation.aux_k, len(dead))
        if num_slots == 0 or self._activation.aux_coefficient == 0:
            return
        share = num_slots / self._activation.aux_k
        found = activations.topk(pre_BF.index_select(1, dead), num_slots)
        codes = SparseCodes(found.values, dead[found.indices])
        # r - r^ = (y - y^) - r^ = -(error + r^), so the error grows by r^ and the gradient keeps its sign.
        missing_BT = error_BT.clone()
        self._kernels.decode(codes, self._dictionary.decoder, missing_BT)
        totals.auxiliary += share * torch.linalg.vecdot(missing_BT, missing_BT).sum(dtype=torch.float64)
        self._backward(codes, missing_BT.mul_(2 * share * self._activation.aux_coefficient), z_BS)
