"""One latent, a gate for each target: on at one snapshot, off at another (the code of Ge et al., arXiv 2509.17196).

    f^t = pre where pre n^t > theta^t, else 0          n^t the norm of the latent's decoder row at target t

Thresholds have the straight-through gradient of JumpReLU, of f^t = JumpReLU(pre n^t) / n^t. The norms in it have none:
that of the quotient is 0.

The code of a row is ``pre`` where any gate is open. Which ones are open follows from it and the weights alone, so it
stays one number for each latent. In training, where gates that are nearly open count, there is one for each target.

Letters: B rows, F latents, H targets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from pipeline.dictionaries.activations.jumprelu import jumprelu

_NO_NORM = 1e-12
"""Below this a row of the decoder is 0, and nothing opens its gate."""


class TargetGates(nn.Module):
    """Parameter ``log_threshold`` [F, H]. Not a ``function.ActivationFunction``: it needs the decoder's norms."""

    def __init__(
        self,
        num_latents: int,
        num_targets: int,
        *,
        start: float,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.log_threshold = nn.Parameter(
            torch.full((num_latents, num_targets), math.log(start), device=device, dtype=dtype)
        )

    @property
    def threshold(self) -> torch.Tensor:
        """theta [F, H]."""
        return self.log_threshold.exp()

    def encode(self, pre_BF: torch.Tensor, norms_FH: torch.Tensor) -> torch.Tensor:
        """Codes [B, F], without a gradient for the thresholds."""
        # For a latent alone: pre n^t > theta^t at any t is pre > the least of theta^t / n^t.
        lowest_F = (self.threshold / norms_FH.clamp(min=_NO_NORM)).amin(1)
        return torch.where(pre_BF > lowest_F, pre_BF, 0)

    def opened(self, codes_BF: torch.Tensor, norms_FH: torch.Tensor) -> Iterator[torch.Tensor]:
        """Codes of one target after the other, [B, F] each, without a gradient for the thresholds."""
        for norm_F, threshold_F in zip(norms_FH.unbind(1), self.threshold.unbind(1), strict=True):
            yield torch.where(codes_BF > threshold_F / norm_F.clamp(min=_NO_NORM), codes_BF, 0)

    def trained(self, pre_BF: torch.Tensor, norms_FH: torch.Tensor, bandwidth: float) -> torch.Tensor:
        """Codes of all targets [H, B, F] with the straight-through gradient."""
        norms = norms_FH.detach().clamp(min=_NO_NORM).unbind(1)
        return torch.stack(
            [
                jumprelu(pre_BF * norm_F, threshold_F, bandwidth) / norm_F
                for norm_F, threshold_F in zip(norms, self.threshold.unbind(1), strict=True)
            ]
        )
