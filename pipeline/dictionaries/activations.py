"""From pre-activations to codes: one function for each ``kind`` of ``schemas.dictionary.Activation``.

Letters: B rows, F latents, K active latents of a row.
"""

from __future__ import annotations

import torch

from pipeline.dictionaries.codes import SparseCodes


def topk(pre_BF: torch.Tensor, k: int) -> SparseCodes:
    """The k largest pre-activations, negative ones cut to 0 (Gao et al. 2024, equation 4).

    ReLU after the selection gives what ReLU before it gives, without a pass over all of ``pre_BF``.
    """
    values_BK, indices_BK = torch.topk(pre_BF, k, dim=1, sorted=False)
    return SparseCodes(values_BK.relu_(), indices_BK)


def relu(pre_BF: torch.Tensor) -> torch.Tensor:
    """Codes [B, F] of the L1 dictionary."""
    return torch.relu(pre_BF)
