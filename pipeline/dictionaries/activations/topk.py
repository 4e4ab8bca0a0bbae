"""f = the k largest of max(0, pre) in each row (Gao et al. 2024, arXiv 2406.04093, equation 4).

Letters: B rows, F latents, K active latents of a row.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.dictionaries.codes import SparseCodes


def topk(pre_BF: torch.Tensor, k: int) -> SparseCodes:
    """The k largest pre-activations, negative ones cut to 0; of equal ones at the k-th place the lowest latents.

    ReLU after the selection gives what ReLU before it gives, without a pass over all of ``pre_BF``.
    """
    if k == pre_BF.shape[1]:
        return SparseCodes(pre_BF.relu(), torch.arange(k, device=pre_BF.device).expand_as(pre_BF).contiguous())
    # torch.topk keeps any of those that tie; one more than k tells where they do.
    values, indices = torch.topk(pre_BF, k + 1, dim=1)
    values_BK, indices_BK = values[:, :k].contiguous(), indices[:, :k].contiguous()
    tied = (values[:, k - 1] == values[:, k]) & (values[:, k] > 0)
    if bool(tied.any()):
        order = torch.sort(pre_BF[tied], dim=1, descending=True, stable=True)
        values_BK[tied], indices_BK[tied] = order.values[:, :k], order.indices[:, :k]
    return SparseCodes(values_BK.relu_(), indices_BK)


class TopKActivation(nn.Module):
    """See ``function.ActivationFunction``."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def encode(self, pre_BF: torch.Tensor, b_enc_F: torch.Tensor) -> SparseCodes:
        """Sparse codes."""
        del b_enc_F
        return topk(pre_BF, self.k)
