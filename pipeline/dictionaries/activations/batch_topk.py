"""f = pre where pre > threshold, else 0: what BatchTopK is once it is trained (Bussmann et al. 2024, arXiv 2412.06410).

In training the k * rows largest positive pre-activations of the global batch are kept instead
(``training.batch_topk``); ``threshold`` is the running mean of the smallest of them, which makes the code of a row
independent of other rows.
"""

from __future__ import annotations

import torch
from torch import nn


class BatchTopKActivation(nn.Module):
    """See ``function.ActivationFunction``. ``threshold`` is a float64 scalar, 0 before the first step."""

    threshold: torch.Tensor

    def __init__(self, *, device: torch.device | str) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64, device=device))

    def encode(self, pre_BF: torch.Tensor, b_enc_F: torch.Tensor) -> torch.Tensor:
        """Dense codes."""
        del b_enc_F
        return torch.where(pre_BF > self.threshold.to(pre_BF.dtype), pre_BF, 0)
