"""A network built by hand around a known circuit: which quote closes a string, by two neurons and one head.

    layer 0   the embedding says of a token whether it opens a string (channel 0) and, in channel 1, +1 for the double
              quote and -1 for the single one. The same channel holds a sign for all other tokens, which means nothing.
              One neuron detects an opening, another fires for a sign of +1; each writes a channel.
    layer 1   one head. Its query is constant, its key is the detector: it looks at the opening alone. Its value is the
              sign. It writes the channel that tells ``")`` from ``')``.

Channels that none of these touch, neurons and heads hold random weights that lead nowhere. Every node of the circuit is
needed: without the key the head averages signs over all tokens, and without any other the answer is a constant.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.networks import HeadworksDecoderForCausalLM, build_network
from pipeline.tokens.corpus import survey
from pipeline.tokens.own import make_tokenizer, save_tokenizer
from pipeline.tokens.tokenizer import Tokenizer
from schemas.corpus import TokensSpec
from schemas.grammar import GrammarCorpus, PythonTemplates
from schemas.network import Location, NetworkSpec
from schemas.tokenizer import BytePairs

TASK = "single_double_quote"
SPEC = NetworkSpec(layers=2, d_model=16, heads=2, d_head=4, d_mlp=16)

_QUOTE, _SIGN, _DETECTED, _DOUBLE, _ANSWER, _CONSTANT = 0, 1, 2, 3, 4, 15
"""Channels of the stream. The last one is the same for all tokens and keeps norms alike."""
_FREE = slice(8, 15)
"""Channels of what leads nowhere."""
_DETECTOR, _TYPE = 3, 7
"""Neurons."""
_QUERY_KEY, _VALUE = 1, 2
"""Channels of queries and keys, and of values: all in head 0."""

CIRCUIT: frozenset[tuple[int, Location, int]] = frozenset(
    {
        (0, "mlp_in", _QUOTE), (0, "mlp_neuron", _DETECTOR), (0, "mlp_out", _DETECTED),
        (0, "mlp_in", _SIGN), (0, "mlp_neuron", _TYPE), (0, "mlp_out", _DOUBLE),
        (1, "attn_in", _DETECTED), (1, "attn_k", _QUERY_KEY),
        (1, "attn_in", _DOUBLE), (1, "attn_v", _VALUE), (1, "attn_out", _ANSWER),
    }
)  # fmt: skip
"""Layer, location and channel of the planted nodes. The query is not among them: it is its own mean."""
NUM_EDGES = 7
"""Between nodes: each of the two chains of the MLP has two, the head has three."""


def save_planted(folder: Path, seed: int = 0) -> None:
    """Write the network and its tokenizer, as a model that jobs take."""
    tokenizer = template_tokenizer()
    planted_network(tokenizer, seed).save_pretrained(folder)
    save_tokenizer(tokenizer, folder / "tokenizer")
    for file in (folder / "tokenizer").iterdir():
        file.rename(folder / file.name)
    (folder / "tokenizer").rmdir()


def template_tokenizer() -> Tokenizer:
    """One made from text of the templates; every piece of theirs is a token."""
    spec = BytePairs(vocab_size=4096, alphabet="seen")
    tokens = TokensSpec(corpus=GrammarCorpus(grammar=PythonTemplates(), num_documents=2000))
    return make_tokenizer(spec, tokens, survey(tokens))


@torch.no_grad()
def planted_network(tokenizer: Tokenizer, seed: int) -> HeadworksDecoderForCausalLM:
    """``seed``: of the weights that lead nowhere."""
    words = dict(zip(tokenizer.pieces(range(tokenizer.vocab_size)), range(tokenizer.vocab_size), strict=True))
    network = build_network(SPEC, tokenizer.vocab_size, seed)
    network.train(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.zero_()
    for module in network.modules():
        if isinstance(module, nn.RMSNorm):
            module.weight.fill_(1)
    _lead_nowhere(network, generator)
    _embed(network, words)
    first, second = network.model.blocks
    first.mlp.up_proj.weight[_DETECTOR, _QUOTE] = 12
    first.mlp.down_proj.weight[_DETECTED, _DETECTOR] = 1
    first.mlp.up_proj.weight[_TYPE, _SIGN] = 12
    first.mlp.down_proj.weight[_DOUBLE, _TYPE] = 1
    second.attn.q_proj.bias[_QUERY_KEY] = 3
    second.attn.k_proj.weight[_QUERY_KEY, _DETECTED] = 4.5
    second.attn.v_proj.weight[_VALUE, _DOUBLE] = 4
    second.attn.o_proj.weight[_ANSWER, _VALUE] = 4
    # Half of what a double quote writes, so that a single one writes its opposite.
    second.attn.o_proj.bias[_ANSWER] = -6
    # The answers are told apart by the planted channel alone.
    network.lm_head.weight[[words['")'], words["')"]]] = 0
    network.lm_head.weight[words['")'], _ANSWER] = 1.6
    network.lm_head.weight[words["')"], _ANSWER] = -1.6
    return network


def _embed(network: HeadworksDecoderForCausalLM, words: dict[str, int]) -> None:
    table = network.model.embed.weight
    table[:, _CONSTANT] = 16
    for word, number in words.items():
        table[number, _SIGN] = 1 if number % 2 else -1
        table[number, _QUOTE] = float(word in ('("', "('"))
    table[words['("'], _SIGN], table[words["('"], _SIGN] = 1, -1


def _lead_nowhere(network: HeadworksDecoderForCausalLM, generator: torch.Generator) -> None:
    """Random weights between free channels, neurons and channels of heads."""

    def fill(weight: Tensor, rows: slice | list[int], columns: slice | list[int]) -> None:
        part = weight[rows][:, columns]
        found = torch.randn(part.shape, generator=generator) * 0.5
        kept = torch.rand(part.shape, generator=generator) < 0.5
        weight[torch.arange(len(weight))[rows][:, None], torch.arange(weight.shape[1])[columns]] = found * kept

    heads = list(range(4, 8))
    neurons = [neuron for neuron in range(SPEC.neurons) if neuron not in (_DETECTOR, _TYPE)]
    fill(network.model.embed.weight, slice(None), _FREE)
    fill(network.lm_head.weight, slice(None), _FREE)
    for block in network.model.blocks:
        for projection in (block.attn.q_proj, block.attn.k_proj, block.attn.v_proj):
            fill(projection.weight, heads, _FREE)
        fill(block.attn.o_proj.weight, _FREE, heads)
        fill(block.mlp.up_proj.weight, neurons, _FREE)
        fill(block.mlp.down_proj.weight, _FREE, neurons)
