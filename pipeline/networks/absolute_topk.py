"""AbsTopK: the activation function of every node location of a weight-sparse network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.network import Location, NetworkSpec


class AbsTopK(nn.Module):
    """Keeps the ``k`` entries of each row [..., width] that are largest by magnitude, of equals the ones that torch's
    ``topk`` gives; the others become 0 and get no gradient."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, rows: Tensor) -> Tensor:
        """The same shape."""
        kept = rows.abs().topk(self.k, dim=-1, sorted=False).indices
        return torch.zeros_like(rows).scatter(-1, kept, rows.gather(-1, kept))

    def extra_repr(self) -> str:
        return f"k={self.k}"


def node(spec: NetworkSpec, location: Location) -> nn.Module:
    """The module that stands at a location: its output is the value of the nodes there."""
    k = spec.kept(location)
    return AbsTopK(k) if k < spec.width(location) else nn.Identity()
