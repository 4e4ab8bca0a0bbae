"""What the blocks of one forward hand each other besides the stream."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Carried:
    """Made anew for each forward by the network, filled by its blocks in their order."""

    reference: Tensor | None = None
    """Values [B, H, L, d_head] of the first layer."""
    error: Tensor | None = None
    """``reference`` less the values of the layer before."""
    integral: Tensor | None = None
    """Sum of the errors of all layers so far."""
    streams: list[Tensor] = field(default_factory=list)
    """The stream [B, L, D] before each residual connection so far, where later ones look back."""
