"""The projections that write into the residual stream."""

from __future__ import annotations

from torch import nn


class StreamProjection(nn.Linear):
    """W_O of attention and of the MLP; they begin smaller than other weights, as 1/sqrt(2 layers)."""
