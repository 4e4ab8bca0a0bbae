"""Residual connections: how a branch is added to the stream."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.networks.carried import Carried


class PlainConnection(nn.Module):
    """x + f(x)."""

    def forward(self, x: Tensor, branch: Tensor, carried: Carried) -> Tensor:
        """``x`` [B, L, D] the stream, ``branch`` [B, L, D] what attention or MLP adds."""
        return x + branch
