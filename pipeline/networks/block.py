"""A block of the decoder: attention and MLP, each behind its norm, each added by a residual connection.

attn_in = AbsTopK(RMSNorm(x))     attn_out = AbsTopK(attention(attn_in))     mid = connect(x, attn_out)
mlp_in = AbsTopK(RMSNorm(mid))    mlp_out = AbsTopK(MLP(mlp_in))             post = connect(mid, mlp_out)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.family import Family, Place
from pipeline.networks.absolute_topk import node
from pipeline.networks.attention import CausalAttention
from pipeline.networks.carried import Carried
from pipeline.networks.projection import StreamProjection
from pipeline.networks.residual import connection
from schemas.network import NetworkSpec, PlainResidual

NORM_EPSILON = 1e-5

_POINTS: dict[str, Place] = {
    "hook_resid_pre": ("", "in"),
    "hook_attn_in": ("attn_in", "out"),
    "attn.hook_q": ("attn.q", "out"),
    "attn.hook_k": ("attn.k", "out"),
    "attn.hook_v": ("attn.v", "out"),
    "attn.hook_pattern": ("attn", "pattern"),
    "attn.hook_z": ("attn.o_proj", "in"),
    "hook_attn_out": ("attn_out", "out"),
    "hook_resid_mid": ("attn_connection", "out"),
    "hook_mlp_in": ("mlp_in", "out"),
    "mlp.hook_pre": ("mlp.up_proj", "out"),
    "mlp.hook_post": ("mlp.neuron", "out"),
    "hook_mlp_out": ("mlp_out", "out"),
    "hook_resid_post": ("", "out"),
}
_SUMS = (
    ("hook_resid_mid", "hook_resid_pre", "hook_attn_out"),
    ("hook_resid_post", "hook_resid_mid", "hook_mlp_out"),
)
# With learned residual connections the stream is no plain sum.
_FAMILIES = {
    (adds, carries): Family("Headworks decoder", _POINTS, _SUMS if adds else (), carries=carries)
    for adds in (True, False)
    for carries in (True, False)
}


def _family(spec: NetworkSpec) -> Family:
    return _FAMILIES[isinstance(spec.residual, PlainResidual), spec.carries]


class MLP(nn.Module):
    """Up, GELU, down; the neurons are what the activation function gives, behind its AbsTopK."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.up_proj = nn.Linear(spec.d_model, spec.neurons, bias=spec.biases)
        self.neuron = node(spec, "mlp_neuron")
        self.down_proj = StreamProjection(spec.neurons, spec.d_model, bias=spec.biases)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        found: Tensor = self.down_proj(self.neuron(functional.gelu(self.up_proj(x))))
        return found


class Block(nn.Module):
    """Layer ``layer`` of the decoder."""

    def __init__(self, spec: NetworkSpec, config: Any, layer: int) -> None:
        super().__init__()
        self.hook_family = _family(spec)
        self.ln_1 = nn.RMSNorm(spec.d_model, eps=NORM_EPSILON)
        self.attn_in = node(spec, "attn_in")
        self.attn = CausalAttention(spec, config, layer)
        self.attn_out = node(spec, "attn_out")
        self.attn_connection = connection(spec, 2 * layer)
        self.ln_2 = nn.RMSNorm(spec.d_model, eps=NORM_EPSILON)
        self.mlp_in = node(spec, "mlp_in")
        self.mlp = MLP(spec)
        self.mlp_out = node(spec, "mlp_out")
        self.mlp_connection = connection(spec, 2 * layer + 1)

    def forward(self, x: Tensor, mask: Tensor | None = None, carried: Carried | None = None) -> Tensor:
        """``x`` [B, L, D]. ``carried``: None where the block runs by itself."""
        carried = Carried() if carried is None else carried
        attended, _ = self.attn(self.attn_in(self.ln_1(x)), mask, carried)
        mid = self.attn_connection(x, self.attn_out(attended), carried)
        added = self.mlp_out(self.mlp(self.mlp_in(self.ln_2(mid))))
        post: Tensor = self.mlp_connection(mid, added, carried)
        return post
