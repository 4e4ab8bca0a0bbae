"""The gate of a node: open or shut on the way forward, the slope of a sigmoid on the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.temperature = temperature
        return is_open(values).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (values,) = ctx.saved_tensors
        share = torch.sigmoid(values / ctx.temperature)
        return gradients[0] * share * (1 - share) / ctx.temperature, None


def is_open(values: Tensor) -> Tensor:
    """Whether a node with this value of the mask is kept: above 0."""
    return values > 0


def gate(values: Tensor, temperature: float) -> Tensor:
    """H(tau), 1.0 or 0.0 in the shape of ``values``; its gradient is taken to be that of sigma(tau / T), which is
    sigma (1 - sigma) / T (Gao et al. 2025, arXiv 2511.13653)."""
    gated: Tensor = _Gate.apply(values, temperature)  # type: ignore[no-untyped-call]
    return gated
