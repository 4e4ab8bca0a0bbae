"""Bridges between a dense and a sparse decoder: maps of one's residual stream to the other's, and back.

Gao et al. 2025 (arXiv 2511.13653). Before each sublayer i, attention and MLP in turn, the streams are h^d_i [B, L, D]
and h^s_i [B, L, S]; f_i = AbsTopK(linear) maps the dense one to the sparse one, g_i is linear and maps back.

    nmse   sum over i of NMSE(f_i(h^d_i), h^s_i) + NMSE(g_i(h^s_i), h^d_i), NMSE(a, b) = |a - b|^2 / |b|^2
    kl     sum over i of KL(y^d, sparse network that goes on from f_i(h^d_i))
                     and KL(y^d, dense network that goes on from g_i(h^s_i)), y^d the dense network's own prediction

The paper gives neither the denominator of the NMSE nor the weights of the terms.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.hooks import resolve, substitute, tap
from pipeline.networks import HeadworksDecoderForCausalLM
from pipeline.networks.absolute_topk import AbsTopK
from schemas.errors import MismatchError, SpecError


def sublayer_points(num_layers: int) -> list[str]:
    """Hook points of the stream before each sublayer, in order."""
    return [f"blocks.{layer}.hook_resid_{part}" for layer in range(num_layers) for part in ("pre", "mid")]


class Bridge(nn.Module):
    """Of one sublayer."""

    def __init__(self, d_dense: int, d_sparse: int, kept: int) -> None:
        """``kept``: channels of a row that AbsTopK leaves."""
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(d_dense, d_sparse), AbsTopK(kept))
        """f_i: [..., D] -> [..., S]."""
        self.decode = nn.Linear(d_sparse, d_dense)
        """g_i: [..., S] -> [..., D]."""


@dataclass(frozen=True)
class BridgeLosses:
    """Each a scalar that can be differentiated, in the units of the module's text."""

    nmse: Tensor
    kl_to_sparse: Tensor
    """The dense network's stream, gone on with by the sparse network."""
    kl_to_dense: Tensor
    """The sparse network's stream, gone on with by the dense network."""

    def total(self, kl_weight: float = 1.0) -> Tensor:
        """NMSE and both divergences, these times ``kl_weight``."""
        return self.nmse + kl_weight * (self.kl_to_sparse + self.kl_to_dense)


class Bridges(nn.Module):
    """A bridge for each sublayer of two decoders, which are not trained here."""

    def __init__(
        self, dense: HeadworksDecoderForCausalLM, sparse: HeadworksDecoderForCausalLM, *, kept_share: float = 0.25
    ) -> None:
        """Raises:
        MismatchError: the decoders have another number of layers, or another vocabulary.
        """
        super().__init__()
        one, other = dense.config, sparse.config
        if (one.num_hidden_layers, one.vocab_size) != (other.num_hidden_layers, other.vocab_size):
            raise MismatchError(
                f"bridges join sublayer to sublayer and prediction to prediction: the dense network has "
                f"{one.num_hidden_layers} layers and {one.vocab_size} tokens, the sparse one "
                f"{other.num_hidden_layers} and {other.vocab_size}"
            )
        self._networks = (dense, sparse)  # in a tuple, so that their weights are no parameters of the bridges
        self.points = sublayer_points(one.num_hidden_layers)
        kept = max(int(kept_share * other.hidden_size), 1)
        self.bridges = nn.ModuleList(Bridge(one.hidden_size, other.hidden_size, kept) for _ in self.points)

    def losses(self, token_ids: Tensor) -> BridgeLosses:
        """``token_ids`` int64 [B, L], without padding. Costs two forwards for each sublayer and two more."""
        dense, sparse = self._networks
        with torch.no_grad():
            streams_d, logits_d = streams(dense, token_ids, self.points)
        # With gradients, for those who train the sparse network as well.
        streams_s, _ = streams(sparse, token_ids, self.points)
        nmse, to_sparse, to_dense = (torch.zeros((), device=token_ids.device) for _ in range(3))
        for point, bridge in zip(self.points, self.bridges, strict=True):
            assert isinstance(bridge, Bridge)
            encoded, decoded = bridge.encode(streams_d[point]), bridge.decode(streams_s[point])
            nmse = nmse + _nmse(encoded, streams_s[point]) + _nmse(decoded, streams_d[point])
            to_sparse = to_sparse + divergence(logits_d, gone_on(sparse, token_ids, point, encoded))
            to_dense = to_dense + divergence(logits_d, gone_on(dense, token_ids, point, decoded))
        return BridgeLosses(nmse, to_sparse, to_dense)

    def intervention(self, point: str, channel: int, change: float, *, scale_ratio: float, strength: float) -> Tensor:
        """[D]: what to add to what the dense network reads behind the RMSNorm of a sublayer, to do to it what
        ``change`` of a read channel does to the sparse one.

        A read is the stream over its own scale, times the gain of its norm: so the change is taken back through the
        sparse norm, through the bridge, and forth through the dense norm.

        ``scale_ratio``: the root mean square of the sparse stream at ``point`` over that of the dense one.
        ``strength`` from 0 to 1.

        Raises:
            SpecError: the sparse network never reads the channel, the gain of its norm is 0.
        """
        index = self.points.index(point)
        bridge = self.bridges[index]
        assert isinstance(bridge, Bridge)
        gain_D, gain_S = (_norm_before(network, index).weight.detach() for network in self._networks)
        if gain_S[channel] == 0:
            raise SpecError(
                f"the sparse network does not read channel {channel} at {point}, the gain of its norm is 0: nothing "
                "can change there; choose another channel"
            )
        row_D = bridge.decode.weight[:, channel].detach()
        return strength * change * scale_ratio * gain_D * row_D / gain_S[channel]


def _norm_before(network: HeadworksDecoderForCausalLM, sublayer: int) -> nn.RMSNorm:
    """Of a sublayer by its number in ``sublayer_points``."""
    block = network.model.blocks[sublayer // 2]
    norm = block.ln_2 if sublayer % 2 else block.ln_1
    assert isinstance(norm, nn.RMSNorm)
    return norm


def streams(
    network: HeadworksDecoderForCausalLM, token_ids: Tensor, points: list[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Point -> [B, L, width], and the logits [B, L, V]."""
    kept: dict[str, Tensor] = {}

    def keep_as(name: str) -> Callable[[Tensor], None]:
        return lambda acts: kept.__setitem__(name, acts)

    with ExitStack() as stack:
        for site in resolve(network.model, points):
            stack.callback(tap(site, keep_as(site.name)).remove)
        logits: Tensor = network(token_ids).logits
    return kept, logits


def gone_on(network: HeadworksDecoderForCausalLM, token_ids: Tensor, point: str, stream: Tensor) -> Tensor:
    """Logits [B, L, V] of the network with ``stream`` [B, L, width] at a point in place of its own."""
    with ExitStack() as stack:
        for handle in substitute(resolve(network.model, [point])[0], lambda _: stream):
            stack.callback(handle.remove)
        logits: Tensor = network(token_ids).logits
    return logits


def _nmse(found: Tensor, target: Tensor) -> Tensor:
    return (found - target).square().sum() / target.square().sum()


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """KL(softmax(logits), softmax(others)) in nats, the mean over tokens."""
    return functional.kl_div(
        others.log_softmax(-1).flatten(0, 1), logits.log_softmax(-1).flatten(0, 1), log_target=True,
        reduction="batchmean",
    )  # fmt: skip
