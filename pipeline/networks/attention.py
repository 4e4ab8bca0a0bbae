"""Causal self-attention of the decoder, with its variants.

Shapes: B batch rows, H heads, L context length, D width of the stream, d width of a head.

The output of the heads is softmax(Q K^T / sqrt(d)) V. With a sink the softmax runs over one more place, whose logit is
learned for each head and whose value is 0. PID attention adds its terms to that output, before W_O.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.absolute_topk import node
from pipeline.networks.carried import Carried
from pipeline.networks.pid import steer
from pipeline.networks.projection import StreamProjection
from schemas.network import NetworkSpec, PidAttention


class CausalAttention(nn.Module):
    """One layer. ``config``: that of the whole network, whose attention implementation may change at any time."""

    def __init__(self, spec: NetworkSpec, config: Any, layer: int) -> None:
        super().__init__()
        width = spec.heads * spec.head_width
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(spec.d_model, width, bias=spec.biases) for _ in range(3))
        self.q, self.k, self.v = node(spec, "attn_q"), node(spec, "attn_k"), node(spec, "attn_v")
        self.o_proj = StreamProjection(width, spec.d_model, bias=spec.biases)
        self.sink = nn.Parameter(torch.zeros(spec.heads)) if spec.attention_sink else None
        self._heads, self._layer = spec.heads, layer
        self._config = config
        self._pid = spec.attention if isinstance(spec.attention, PidAttention) else None

    def forward(self, x: Tensor, mask: Tensor | None, carried: Carried) -> tuple[Tensor, Tensor | None]:
        """``x`` [B, L, D], ``mask`` as transformers' ``create_causal_mask`` gives it; yields [B, L, D] and the pattern
        [B, H, L, L], where it was formed. The weights of a pattern with a sink sum to less than 1."""
        query, key, value = (
            point(projection(x)).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for projection, point in ((self.q_proj, self.q), (self.k_proj, self.k), (self.v_proj, self.v))
        )
        pattern = None
        if self._config._attn_implementation == "eager" or self.sink is not None:
            pattern = self._pattern(query, key, mask)
            mixed = pattern @ value
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
        if self._pid is not None:
            mixed = steer(self._pid, mixed, value, carried, self._layer)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), pattern

    def _pattern(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        scores: Tensor = (query @ key.mT) * query.shape[-1] ** -0.5
        if mask is None:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
        if self.sink is None:
            return scores.float().softmax(-1).to(scores.dtype)
        sink = self.sink.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sink], -1).float().softmax(-1)[..., :-1].to(scores.dtype)
