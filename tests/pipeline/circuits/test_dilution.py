"""A counter that averages over its context, built by hand, loses count where the average falls below its threshold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.circuits.dilution import dilution
from pipeline.circuits.network import MaskedNetwork
from pipeline.circuits.nodes import Nodes
from pipeline.networks import build_network
from pipeline.tokens.tokenizer import Tokenizer
from schemas.network import NetworkSpec

SPEC = NetworkSpec(layers=1, d_model=4, heads=1, d_mlp=4)
THRESHOLD = 0.048
"""Share of tokens that must be ``[[``: up to 20 tokens it counts."""


@torch.no_grad()
def counter(tokenizer: Tokenizer) -> MaskedNetwork:
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    network = build_network(SPEC, tokenizer.vocab_size, 0)
    for parameter in network.parameters():
        parameter.zero_()
    for module in network.modules():
        if isinstance(module, nn.RMSNorm):
            module.weight.fill_(1)
    # The last channel is so large that norms divide every token alike: by half of it.
    network.model.embed.weight[:, 3] = 1000
    network.model.embed.weight[pieces.index(" [["), 0] = 1
    attention = network.model.blocks[0].attn
    attention.v_proj.weight[0, 0] = 500
    attention.o_proj.weight[1, 0] = 1
    attention.o_proj.bias[1] = -THRESHOLD
    network.lm_head.weight[pieces.index("]]"), 1] = 500
    network.lm_head.weight[pieces.index("]"), 1] = -500
    network.train(False)
    return MaskedNetwork(network, torch.zeros(Nodes(SPEC).number), freeze_norm_scale=False)


def test_distractors_dilute_the_count(tokenizer: Tokenizer) -> None:
    found = dilution(counter(tokenizer), tokenizer, [4, 6, 8, 12, 24], pairs=8)
    assert [one.numbers for one in found] == [4, 6, 8, 12, 24]
    for one in found:
        assert one.flat.error == 0
        # The counter sees the outer bracket alone, wherever it is, so pairs dilute it as well.
        for answers in (one.nested, one.early, one.paired):
            assert answers.error == pytest.approx(float(answers.tokens * THRESHOLD > 1))
            assert (answers.margin > 0) == (answers.error == 0)
        assert one.paired.tokens >= one.nested.tokens
    assert {one.nested.error for one in found} == {0.0, 1.0}


def test_the_controls_tell_an_average_from_the_length_and_the_last_bracket(tokenizer: Tokenizer) -> None:
    """One that counts all opening brackets over its context loses count in one long list, and not among pairs."""
    network = counter(tokenizer)
    inner = tokenizer.pieces(range(tokenizer.vocab_size)).index(" [")
    with torch.no_grad():
        network.decoder.model.embed.weight[inner, 0] = 1
    (found,) = dilution(network, tokenizer, [24], pairs=8)
    assert (found.nested.error, found.early.error, found.paired.error) == (1, 1, 0)
    assert found.early.tokens == found.nested.tokens
