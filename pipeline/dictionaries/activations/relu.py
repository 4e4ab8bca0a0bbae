"""f = max(0, pre): the dictionaries whose sparsity is a penalty."""

from __future__ import annotations

import torch
from torch import nn


class ReluActivation(nn.Module):
    """See ``function.ActivationFunction``."""

    def encode(self, pre_BF: torch.Tensor, b_enc_F: torch.Tensor) -> torch.Tensor:
        """Dense codes."""
        del b_enc_F
        return torch.relu(pre_BF)
