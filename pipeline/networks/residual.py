"""Residual connections: how a branch is added to the stream.

Shapes: B batch rows, L context length, D width of the stream, r rank, J matrices of a connection, k earlier streams.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.networks.carried import Carried
from schemas.errors import ModelError
from schemas.network import LaurelResidual, NetworkSpec


class PlainConnection(nn.Module):
    """x + f(x)."""

    def forward(self, x: Tensor, branch: Tensor, carried: Carried) -> Tensor:
        """``x`` [B, L, D] the stream, ``branch`` [B, L, D] what attention or MLP adds."""
        return x + branch


class LaurelConnection(nn.Module):
    """One of the equations of ``LaurelResidual``, for the connection ``index`` of a network: two to a block.

    Parameters, where the form has them: ``mix`` [2] gives a and b; ``reads`` [J, r, D] and ``writes`` [J, D, r] are A
    and B, J = 1, of ``rw_lr_pa`` k + 1; ``gains`` [k] are g_1 to g_k. The k earlier streams are ``previous`` or as many
    as there are.
    """

    def __init__(self, spec: LaurelResidual, width: int, index: int) -> None:
        super().__init__()
        self._spec, self._index = spec, index
        self.mix_at_start = 1.0 if spec.weights == "free" else 0.0
        self._previous = min(spec.previous, index) if spec.looks_back else 0
        count = 1 + self._previous if spec.form == "rw_lr_pa" else 1
        self.mix = nn.Parameter(torch.empty(2)) if spec.form.startswith("rw") else None
        self.reads = nn.Parameter(torch.empty(count, spec.rank, width)) if spec.form != "rw" else None
        self.writes = nn.Parameter(torch.empty(count, width, spec.rank)) if spec.form != "rw" else None
        self.gains = nn.Parameter(torch.empty(self._previous)) if self._previous else None

    def forward(self, x: Tensor, branch: Tensor, carried: Carried) -> Tensor:
        """As ``PlainConnection``; ``carried`` gets ``x`` where later connections look back.

        Raises:
            ModelError: the connections before this one did not run.
        """
        kept = x
        if self._spec.looks_back:
            if len(carried.streams) != self._index:
                raise ModelError(
                    f"residual connection {self._index} looks back at {self._index} streams, {len(carried.streams)} "
                    "are there: such a network runs whole, in one process"
                )
            carried.streams.append(x)
            for back in range(self._previous, 0, -1):
                assert self.gains is not None
                kept = kept + self.gains[back - 1] * self._low_rank(carried.streams[-1 - back], back)
        if self.reads is not None:
            kept = kept + self._low_rank(x, 0)
        if self.mix is None:
            return kept + branch
        weights = self._weights()
        return weights[0] * branch + weights[1] * kept

    def _low_rank(self, x: Tensor, back: int) -> Tensor:
        """B A x, with the matrices for the stream ``back`` connections earlier."""
        assert self.reads is not None
        assert self.writes is not None
        at = back if len(self.reads) > 1 else 0
        return (x @ self.reads[at].T) @ self.writes[at].T

    def _weights(self) -> Tensor:
        assert self.mix is not None
        if self._spec.weights == "free":
            return self.mix
        return 2 * (self.mix.softmax(0) if self._spec.weights == "softmax" else self.mix.sigmoid())


def connection(spec: NetworkSpec, index: int) -> nn.Module:
    """The residual connection ``index`` of a network."""
    if isinstance(spec.residual, LaurelResidual):
        return LaurelConnection(spec.residual, spec.d_model, index)
    return PlainConnection()
