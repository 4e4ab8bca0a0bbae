"""The decoder as transformers' model: built from a ``NetworkSpec``, saved and loaded like any other.

Shapes: B batch rows, L context length, D width of the stream, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from pipeline.networks.attention import CausalAttention
from pipeline.networks.block import NORM_EPSILON, Block
from pipeline.networks.carried import Carried
from pipeline.networks.config import HeadworksDecoderConfig
from pipeline.networks.projection import StreamProjection
from pipeline.networks.residual import LaurelConnection
from schemas.errors import ModelError
from schemas.network import NetworkSpec

INITIAL_DEVIATION = 0.02
"""Standard deviation of the weights at the start; of the projections into the stream over sqrt(2 layers)."""


class HeadworksDecoderPreTrained(transformers.PreTrainedModel):  # type: ignore[no-untyped-call]
    """What backbone and language model have in common."""

    config_class = HeadworksDecoderConfig
    base_model_prefix = "model"
    _input_embed_layer = "embed"
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012 - transformers' name and type

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Asked for each module that has weights of its own."""
        if isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, BigramTable):
            init.uniform_(module.weight, 0.0, INITIAL_DEVIATION)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=INITIAL_DEVIATION)
        elif isinstance(module, nn.Linear):
            depth = 2 * self.config.num_hidden_layers if isinstance(module, StreamProjection) else 1
            init.normal_(module.weight, mean=0.0, std=INITIAL_DEVIATION / math.sqrt(depth))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, CausalAttention) and module.sink is not None:
            init.zeros_(module.sink)
        elif isinstance(module, LaurelConnection):
            _begin_plain(module)


def _begin_plain(connection: LaurelConnection) -> None:
    """As the plain connection: a and b are 1, B is 0; the gains are 1, so that B gets a gradient of every stream."""
    if connection.mix is not None:
        init.constant_(connection.mix, connection.mix_at_start)
    if connection.reads is not None and connection.writes is not None:
        init.normal_(connection.reads, mean=0.0, std=INITIAL_DEVIATION)
        init.zeros_(connection.writes)
    if connection.gains is not None:
        init.ones_(connection.gains)


class BigramTable(nn.Embedding):
    """Logits [V] for each current token."""


class HeadworksDecoder(HeadworksDecoderPreTrained):  # type: ignore[no-untyped-call]
    """The network below its unembedding."""

    def __init__(self, config: HeadworksDecoderConfig) -> None:
        super().__init__(config)
        spec = config.spec
        self.embed = nn.Embedding(config.vocab_size, spec.d_model)
        self.positions = nn.Embedding(spec.context_length, spec.d_model) if spec.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(spec, config, layer) for layer in range(spec.layers))
        self.ln_f = nn.RMSNorm(spec.d_model, eps=NORM_EPSILON)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """``input_ids`` int64 [B, L], ``attention_mask`` int64 [B, L], 0 for padding.

        Raises:
            ModelError: a context longer than the learned positions.
        """
        x = self.embed(input_ids)
        if self.positions is not None:
            x = x + self.positions(self._places(input_ids.shape[1]))
        mask = create_causal_mask(self.config, x, attention_mask, None)
        carried = Carried()
        for block in self.blocks:
            x = block(x, mask, carried)
        return BaseModelOutput(last_hidden_state=self.ln_f(x))

    def _places(self, length: int) -> Tensor:
        assert self.positions is not None
        if length > self.positions.num_embeddings:
            raise ModelError(
                f"a context of {length} tokens, the network has learned positions for {self.positions.num_embeddings}: "
                "choose shorter contexts (tokens.packing.context_length), or train it with a larger context_length"
            )
        return torch.arange(length, device=self.positions.weight.device)


class HeadworksDecoderForCausalLM(HeadworksDecoderPreTrained):  # type: ignore[no-untyped-call]
    """The whole network: logits = unembed(RMSNorm(stream)) + bigram[current token]."""

    _tied_weights_keys = {"lm_head.weight": "model.embed.weight"}  # noqa: RUF012 - transformers' name and type

    def __init__(self, config: HeadworksDecoderConfig) -> None:
        super().__init__(config)
        self.model = HeadworksDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bigram = BigramTable(config.vocab_size, config.vocab_size) if config.spec.bigram_table else None
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> CausalLMOutput:
        """Logits [B, L, V]."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.lm_head(hidden)
        if self.bigram is not None:
            logits = logits + self.bigram(input_ids)
        return CausalLMOutput(logits=logits)


transformers.AutoModel.register(HeadworksDecoderConfig, HeadworksDecoder, exist_ok=True)
transformers.AutoModelForCausalLM.register(HeadworksDecoderConfig, HeadworksDecoderForCausalLM, exist_ok=True)


def build_network(spec: NetworkSpec, vocab_size: int, seed: int) -> HeadworksDecoderForCausalLM:
    """A network with random weights, float32 on the CPU, in training mode. The same seed gives the same weights;
    torch's own generator stays as it was."""
    config = HeadworksDecoderConfig(network=spec.model_dump(mode="json"), vocab_size=vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = HeadworksDecoderForCausalLM(config)
    network.train()
    return network
