"""f = [gate > 0] * max(0, magnitude) (Rajamanoharan et al. 2024, arXiv 2404.16014, equations 5 to 7).

    gate      = z W_enc^T + b_enc                       the dictionary's own pre-activation
    magnitude = exp(r_mag) * (z W_enc^T) + b_mag        the same directions, scaled latent by latent

Letters: B rows, F latents.
"""

from __future__ import annotations

import torch
from torch import nn


class GatedActivation(nn.Module):
    """See ``function.ActivationFunction``. Parameters ``r_mag`` [F] and ``b_mag`` [F], zero at the start."""

    def __init__(
        self, num_latents: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.r_mag = nn.Parameter(torch.zeros(num_latents, device=device, dtype=dtype))
        self.b_mag = nn.Parameter(torch.zeros(num_latents, device=device, dtype=dtype))

    def encode(self, pre_BF: torch.Tensor, b_enc_F: torch.Tensor) -> torch.Tensor:
        """Dense codes; the gate passes no gradient, as in the paper."""
        magnitude_BF = torch.addcmul(self.b_mag, self.r_mag.exp(), pre_BF - b_enc_F)
        return torch.relu(magnitude_BF) * (pre_BF > 0)
