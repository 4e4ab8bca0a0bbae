"""The network whose nodes are left out: every node is let through or held at its mean by a gate.

Letters: N prompts, L tokens, M nodes, D width of the stream.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.circuits.nodes import Nodes, Place
from pipeline.circuits.tasks.pairs import Pairs
from pipeline.models.hooks import HookSite, change, resolve, substitute
from pipeline.models.load import load_model
from pipeline.networks import HeadworksDecoderForCausalLM
from schemas.errors import ModelError
from schemas.model import ModelSpec


def load_decoder(spec: ModelSpec) -> HeadworksDecoderForCausalLM:
    """The decoder in float32, in which small gradients of masks are not lost.

    Raises:
        ModelError: another network, which need not have all locations of nodes, or one with paths around them.
    """
    loaded = load_model(spec.model_copy(update={"dtype": "float32"}), with_head=True)
    if not isinstance(loaded.module, HeadworksDecoderForCausalLM):
        raise ModelError(
            f"model {spec.path!r} is {type(loaded.module).__name__}; circuits need the decoder that a train_model job "
            "makes, whose blocks have all eight locations of nodes"
        )
    network = loaded.module.config.spec
    for what, kind, plain in (
        ("attention", network.attention.kind, "softmax"),
        ("residual", network.residual.kind, "plain"),
    ):
        if kind != plain:
            raise ModelError(
                f"model {spec.path!r} has {what} of kind {kind!r}, which joins layers by ways around the nodes; "
                f"circuits need {plain!r}"
            )
    return loaded.module


class MaskedNetwork:
    """A decoder, the means of its nodes, and a forward with gates. The decoder stays as it is."""

    def __init__(self, decoder: HeadworksDecoderForCausalLM, means: Tensor, *, freeze_norm_scale: bool) -> None:
        """``means`` float32 [M]: what nodes that are left out are fixed at."""
        self.decoder = decoder
        self.nodes = Nodes(decoder.config.spec)
        self.device = decoder.lm_head.weight.device
        assert means.shape == (self.nodes.number,)
        self._means = means.to(self.device)
        self._freeze = freeze_norm_scale
        sites = resolve(decoder.model, [place.hook for place in self.nodes.places])
        self._sites: list[tuple[Place, HookSite]] = list(zip(self.nodes.places, sites, strict=True))
        self._norms = [module for module in decoder.model.modules() if isinstance(module, nn.RMSNorm)]

    def margins(self, pairs: Pairs, gates: Tensor | None = None) -> Tensor:
        """[N]: the logit of the first answer less that of the second, at the end of each prompt.

        ``gates`` [M] from 0 to 1: a node's share of its own value, the rest being its mean, at every token; None: the
        intact network.
        """
        with ExitStack() as stack:
            if gates is not None:
                for handle in self._frozen_norms(pairs) if self._freeze else ():
                    stack.callback(handle.remove)
                for place, site in self._sites:
                    for handle in substitute(site, self._gated(place, gates)):
                        stack.callback(handle.remove)
            return self._margins(pairs)

    def _margins(self, pairs: Pairs) -> Tensor:
        """Of the two answers alone: a vocabulary of logits for each token would cost more than the network."""
        hidden_NLD = self.decoder.model(pairs.token_ids).last_hidden_state
        rows = torch.arange(len(pairs.token_ids), device=self.device)
        last = pairs.lengths - 1
        weights_N2D = self.decoder.lm_head.weight[pairs.answers]
        logits_N2 = torch.einsum("nd,nad->na", hidden_NLD[rows, last], weights_N2D)
        if self.decoder.bigram is not None:
            current = pairs.token_ids[rows, last]
            logits_N2 = logits_N2 + self.decoder.bigram.weight[current[:, None], pairs.answers]
        margins: Tensor = logits_N2[:, 0] - logits_N2[:, 1]
        return margins

    def _gated(self, place: Place, gates: Tensor) -> Any:
        own, means = gates[place.nodes], self._means[place.nodes]
        # Exact at both ends: x * 1 + mean * 0 is x.
        fixed = (1 - own) * means
        return lambda acts: acts * own + fixed

    def _frozen_norms(self, pairs: Pairs) -> list[Any]:
        """Handles that make every norm divide by what it divides by in the intact network."""
        scales: dict[nn.RMSNorm, Tensor] = {}

        def keep(norm: nn.RMSNorm) -> Any:
            return lambda acts: scales.__setitem__(norm, _scale(norm, acts))

        handles = [change(norm, "in", keep(norm)) for norm in self._norms]
        with torch.no_grad():
            self.decoder.model(pairs.token_ids)
        for handle in handles:
            handle.remove()

        def rescaled(norm: nn.RMSNorm, args: Any, output: Tensor) -> Tensor:
            return output * (_scale(norm, args[0]) / scales[norm])

        return [norm.register_forward_hook(rescaled) for norm in self._norms]


def _scale(norm: nn.RMSNorm, acts: Tensor) -> Tensor:
    """[..., 1]: what the norm divides by."""
    eps = norm.eps if norm.eps is not None else torch.finfo(acts.dtype).eps
    return (acts.square().mean(-1, keepdim=True) + eps).sqrt()
