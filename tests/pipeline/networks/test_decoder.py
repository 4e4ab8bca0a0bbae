"""The decoder against its equations written out by hand, and as a folder that transformers loads."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers
from pydantic import ValidationError
from small_networks import CONTEXT, HEADS, LAYERS, OPTIONS, VOCAB, build, spec_of, token_ids
from torch import Tensor
from torch.nn import functional

from pipeline.models.load import load_model
from pipeline.networks import HeadworksDecoderForCausalLM, build_network
from pipeline.networks.absolute_topk import AbsTopK
from schemas.errors import ModelError
from schemas.model import ModelSpec
from schemas.network import LOCATIONS, NetworkSpec


def by_hand(network: HeadworksDecoderForCausalLM, ids: Tensor) -> Tensor:
    """Logits from the weights and the equations of arXiv 2511.13653, one context and one head at a time."""
    spec, at = network.config.spec, dict(network.named_parameters())

    def kept(rows: Tensor, location: str) -> Tensor:
        k = spec.kept(location)
        lowest = rows.abs().sort(-1, descending=True).values[..., k - 1 : k]
        return torch.where(rows.abs() >= lowest, rows, 0.0)

    def linear(rows: Tensor, name: str) -> Tensor:
        return rows @ at[f"{name}.weight"].T + at.get(f"{name}.bias", torch.zeros(()))

    def norm(rows: Tensor, name: str) -> Tensor:
        return rows / (rows.square().mean(-1, keepdim=True) + 1e-5).sqrt() * at[f"{name}.weight"]

    found = []
    for context in ids:
        x = at["model.embed.weight"][context]
        if spec.positions == "learned":
            x = x + at["model.positions.weight"][: len(context)]
        streams: list[Tensor] = []

        def connect(x: Tensor, branch: Tensor, name: str, streams: list[Tensor] = streams) -> Tensor:
            streams.append(x)
            if spec.residual.kind == "plain":
                return x + branch
            reads, writes, kept = at[f"{name}.reads"], at[f"{name}.writes"], x
            for back, stream in enumerate(streams[::-1][: len(reads)]):
                gain = at[f"{name}.gains"][back - 1] if back else 1.0
                kept = kept + gain * torch.einsum("dr,rc,lc->ld", writes[back], reads[back], stream)
            a, b = at[f"{name}.mix"].exp() / at[f"{name}.mix"].exp().mean()
            return a * branch + b * kept

        first: list[Tensor] = []
        errors: list[Tensor] = []
        for layer in range(spec.layers):
            block = f"model.blocks.{layer}"
            read = kept(norm(x, f"{block}.ln_1"), "attn_in")
            q, k, v = (kept(linear(read, f"{block}.attn.{one}_proj"), f"attn_{one}") for one in "qkv")
            heads = []
            for head in range(spec.heads):
                here = slice(head * spec.head_width, (head + 1) * spec.head_width)
                weights = (q[:, here] @ k[:, here].T / math.sqrt(spec.head_width)).exp().tril()
                rest = at[f"{block}.attn.sink"][head].exp() if spec.attention_sink else 0.0
                heads.append(weights / (weights.sum(1, keepdim=True) + rest) @ v[:, here])
            mixed = torch.cat(heads, 1)
            first = first or [v]
            if spec.attention.kind == "pid":
                errors.append(first[0] - v)
                change = errors[-1] - errors[-2] if layer else torch.zeros_like(v)
                mixed = mixed + spec.attention.proportional * errors[-1]
                mixed = mixed + spec.attention.integral * sum(errors) + spec.attention.derivative * change
            x = connect(x, kept(linear(mixed, f"{block}.attn.o_proj"), "attn_out"), f"{block}.attn_connection")
            read = kept(norm(x, f"{block}.ln_2"), "mlp_in")
            neurons = kept(functional.gelu(linear(read, f"{block}.mlp.up_proj")), "mlp_neuron")
            x = connect(x, kept(linear(neurons, f"{block}.mlp.down_proj"), "mlp_out"), f"{block}.mlp_connection")
        unembedding = at["model.embed.weight" if spec.tied_embeddings else "lm_head.weight"]
        logits = norm(x, "model.ln_f") @ unembedding.T
        found.append(logits + at["bigram.weight"][context] if spec.bigram_table else logits)
    return torch.stack(found)


@pytest.mark.parametrize("option", OPTIONS)
def test_logits_are_those_of_the_equations(option: str) -> None:
    network, ids = build(option), token_ids()
    torch.testing.assert_close(network(ids).logits, by_hand(network, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_saved_folder_is_a_model_like_any_other(option: str, tmp_path: Path) -> None:
    network, ids = build(option), token_ids()
    network.save_pretrained(tmp_path)
    expected = network(ids).logits
    for attention in ("sdpa", "eager"):
        spec = ModelSpec.model_validate({"path": str(tmp_path), "dtype": "float32", "attention": attention})
        found = load_model(spec, with_head=True)
        assert (found.d_model, found.num_layers) == (16, LAYERS)
        torch.testing.assert_close(found.module(ids).logits, expected, rtol=1e-4, atol=1e-5)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.spec == network.config.spec
    assert {name: tensor.tolist() for name, tensor in again.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in network.state_dict().items()
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("option", ["plain", "sink"])
def test_padding_on_either_side_changes_nothing(option: str, attention: str) -> None:
    network, ids = build(option, positions="none"), token_ids()
    network.set_attn_implementation(attention)
    expected = network(ids[:, :5]).logits
    padded = functional.pad(ids[:, :5], (2, 2))
    mask = functional.pad(torch.ones_like(ids[:, :5]), (2, 2))
    torch.testing.assert_close(network(padded, attention_mask=mask).logits[:, 2:7], expected, rtol=1e-4, atol=1e-5)


def test_the_seed_decides_the_weights_and_nothing_else_changes() -> None:
    before = torch.random.get_rng_state()
    first, same, other = (build_network(spec_of("bigram"), VOCAB, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    assert not torch.equal(first["model.embed.weight"], other["model.embed.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_begin_as_gpt2s_do() -> None:
    spec = NetworkSpec(layers=2, d_model=128, heads=4, bigram_table=True, attention_sink=True, positions="learned")
    weights = build_network(spec, 500, seed=0).state_dict()
    for name, tensor in weights.items():
        if "ln_" in name:
            assert bool((tensor == 1).all())
        elif name.endswith(("bias", "sink")):
            assert not bool(tensor.any())
        elif name == "bigram.weight":
            assert 0 <= float(tensor.min()) < float(tensor.max()) < 0.02
        else:
            into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
            expected = 0.02 / math.sqrt(4) if into_stream else 0.02
            assert float(tensor.std()) == pytest.approx(expected, rel=0.02), name


def test_the_fraction_says_how_many_entries_are_kept() -> None:
    spec = spec_of("sparse")
    assert [spec.kept(one) for one in LOCATIONS] == [4, 4, 4, 4, 16, 4, 6, 4]
    assert NetworkSpec(d_model=16, heads=4, activation_fraction=0.01).kept("attn_q") == 1
    rows = torch.tensor([[3.0, -5.0, 0.5, 4.0, -0.1]], requires_grad=True)
    found = AbsTopK(2)(rows)
    assert found.tolist() == [[0.0, -5.0, 0.0, 4.0, 0.0]]
    found.sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[0.0, 1.0, 0.0, 1.0, 0.0]]
    equal = AbsTopK(3)(torch.ones(4, 7))
    assert equal.sum(1).tolist() == [3.0] * 4


def test_a_context_longer_than_the_learned_positions_is_refused() -> None:
    network = build("sink")
    with pytest.raises(ModelError, match="a context of 13 tokens, the network has learned positions for 12"):
        network(token_ids(context=CONTEXT + 1))
    assert build("plain")(token_ids(context=CONTEXT + 1)).logits.shape == (3, CONTEXT + 1, VOCAB)


def test_heads_that_do_not_divide_the_stream_need_a_width() -> None:
    with pytest.raises(ValidationError, match="is not a multiple of heads"):
        NetworkSpec(d_model=18, heads=HEADS)
    assert NetworkSpec(d_model=18, heads=HEADS, d_head=5).head_width == 5
