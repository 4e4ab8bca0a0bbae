"""f = pre where pre > theta, else 0, a trained threshold for each latent (Rajamanoharan et al. 2024, arXiv 2407.14435).

The step has no derivative in theta; near it a straight-through one stands in, of a kernel of width w around theta:

    d f / d theta      = -theta / w   where |pre - theta| < w / 2, else 0
    d [f > 0] / d theta = -1 / w       where |pre - theta| < w / 2, else 0

theta is kept as its logarithm, ``log_threshold``, so it stays positive (Anthropic, January 2025 update).

Letters: B rows, F latents.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


class JumpReluActivation(nn.Module):
    """See ``function.ActivationFunction``. Parameter ``log_threshold`` [F]."""

    def __init__(
        self, num_latents: int, *, start: float, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.log_threshold = nn.Parameter(torch.full((num_latents,), math.log(start), device=device, dtype=dtype))

    @property
    def threshold(self) -> torch.Tensor:
        """theta [F]."""
        return self.log_threshold.exp()

    def encode(self, pre_BF: torch.Tensor, b_enc_F: torch.Tensor) -> torch.Tensor:
        """Dense codes, without a gradient for the thresholds: ``jumprelu`` has it."""
        del b_enc_F
        return torch.where(pre_BF > self.threshold, pre_BF, 0)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_BF: torch.Tensor, threshold_F: torch.Tensor, bandwidth: float) -> torch.Tensor:
        ctx.save_for_backward(pre_BF, threshold_F)
        ctx.bandwidth = bandwidth
        return torch.where(pre_BF > threshold_F, pre_BF, 0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        pre_BF, threshold_F = ctx.saved_tensors
        near_BF = (pre_BF - threshold_F).abs() < ctx.bandwidth / 2
        grad_threshold_F = -(threshold_F / ctx.bandwidth) * (grads[0] * near_BF).sum(0)
        return grads[0] * (pre_BF > threshold_F), grad_threshold_F, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_BF: torch.Tensor, threshold_F: torch.Tensor, bandwidth: float) -> torch.Tensor:
        ctx.save_for_backward(pre_BF, threshold_F)
        ctx.bandwidth = bandwidth
        return (pre_BF > threshold_F).to(pre_BF.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        pre_BF, threshold_F = ctx.saved_tensors
        near_BF = (pre_BF - threshold_F).abs() < ctx.bandwidth / 2
        return None, -(grads[0] * near_BF).sum(0) / ctx.bandwidth, None


def jumprelu(pre_BF: torch.Tensor, threshold_F: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """Codes with the straight-through gradient."""
    codes_BF: torch.Tensor = _Jump.apply(pre_BF, threshold_F, bandwidth)  # type: ignore[no-untyped-call]
    return codes_BF


def is_active(pre_BF: torch.Tensor, threshold_F: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """1 where a latent is on, else 0, with a straight-through gradient for the thresholds alone."""
    active_BF: torch.Tensor = _Step.apply(pre_BF, threshold_F, bandwidth)  # type: ignore[no-untyped-call]
    return active_BF
