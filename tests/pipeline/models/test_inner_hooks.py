"""The points inside of attention and MLP, held to each other by the arithmetic that joins them."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import FAMILIES, LAYERS, build, kind_of, loaded, token_ids
from torch import Tensor
from transformers.activations import ACT2FN

from pipeline.models.forward import ActivationForward
from pipeline.models.hooks import available, resolve, substitute
from pipeline.models.load import LoadedModel
from schemas.errors import HookPointError

HEADS, LENGTHS = 4, torch.tensor([9, 9, 9])
IN_ONE = ("gpt2", "neox_parallel", "neox_sequential", "modernbert")
VERIFIED = [name for name in FAMILIES if name != "granite"]


def eager(family: str) -> LoadedModel:
    return loaded(build(family, attention="eager"), kind=kind_of(family))


def everything(family: str, context_length: int = 9) -> dict[str, Tensor]:
    network = eager(family)
    forward = ActivationForward(network, available(network.module), context_length=context_length)
    return forward.run(token_ids(), LENGTHS)


@pytest.mark.parametrize("family", VERIFIED)
def test_a_pattern_is_a_row_for_each_token_with_a_share_of_each_head(family: str) -> None:
    found = everything(family, context_length=12)
    for layer in range(LAYERS):
        pattern = found[f"blocks.{layer}.attn.hook_pattern"].view(3, 9, HEADS, 12)
        torch.testing.assert_close(pattern.sum(dim=-1), torch.ones(3, 9, HEADS), rtol=1e-5, atol=1e-5)
        assert not pattern[..., 9:].any()
        if kind_of(family) == "causal_lm":
            assert not pattern[:, :, :, :9].triu(1).swapaxes(1, 2).triu(1).any()


@pytest.mark.parametrize("family", [name for name in VERIFIED if name not in IN_ONE])
def test_a_heads_output_is_its_pattern_times_its_values(family: str) -> None:
    found = everything(family)
    for layer in range(LAYERS):
        pattern = found[f"blocks.{layer}.attn.hook_pattern"].view(3, 9, HEADS, 9)
        values = found[f"blocks.{layer}.attn.hook_v"].view(3, 9, -1, 4)
        values = values.repeat_interleave(HEADS // values.shape[2], dim=2)
        expected = torch.einsum("blhs,bshd->blhd", pattern, values).flatten(2)
        torch.testing.assert_close(found[f"blocks.{layer}.attn.hook_z"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", VERIFIED)
def test_what_the_heads_and_the_neurons_put_out_is_projected_onto_the_stream(family: str) -> None:
    """W_O z and W_out post are what attention and MLP return."""
    network = eager(family).module
    found = everything(family)
    for layer in range(LAYERS):
        for inner, outer in (("attn.hook_z", "hook_attn_out"), ("mlp.hook_post", "hook_mlp_out")):
            site, end = resolve(network, [f"blocks.{layer}.{inner}", f"blocks.{layer}.{outer}"])
            projected = site.module(found[site.name])
            if end.module is not site.module and family == "gemma2":
                projected = end.module(projected)
            torch.testing.assert_close(projected, found[end.name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", [name for name in VERIFIED if name != "modernbert"])
def test_neurons_are_the_activation_of_what_comes_before(family: str) -> None:
    module = eager(family).module
    found, config = everything(family), module.config
    names = ("hidden_act", "hidden_activation", "activation_function", "dense_act_fn")
    activation = ACT2FN[next(getattr(config, name) for name in names if getattr(config, name, None))]
    for layer in range(LAYERS):
        expected = activation(found[f"blocks.{layer}.mlp.hook_pre"])
        expected = expected * found.get(f"blocks.{layer}.mlp.hook_pre_linear", torch.ones(()))
        torch.testing.assert_close(found[f"blocks.{layer}.mlp.hook_post"], expected, rtol=1e-5, atol=1e-6)


def test_a_pattern_needs_attention_that_forms_it() -> None:
    with pytest.raises(HookPointError, match=r"model\.attention: eager"):
        resolve(build("llama"), ["blocks.0.attn.hook_pattern"], context_length=9)
    assert not any("pattern" in name for name in available(build("llama")))


def test_a_pattern_needs_contexts_of_a_greatest_length() -> None:
    with pytest.raises(HookPointError, match="greatest length"):
        ActivationForward(eager("llama"), ["blocks.0.attn.hook_pattern"])


def test_a_pattern_is_not_replaced() -> None:
    (site,) = resolve(build("llama", attention="eager"), ["blocks.0.attn.hook_pattern"], context_length=9)
    with pytest.raises(HookPointError, match="not replaced"):
        substitute(site, lambda tensor: tensor)


def test_projections_in_one_have_no_points_of_their_own() -> None:
    with pytest.raises(HookPointError, match=r"hook_q' does not exist; .*Points of a block: .*attn\.hook_z"):
        resolve(build("gpt2"), ["blocks.0.attn.hook_q"])


@pytest.mark.parametrize("family", ["llama", "bert", "modernbert"])
def test_padding_has_no_weight(family: str) -> None:
    point = "blocks.2.attn.hook_pattern"
    forward = ActivationForward(eager(family), [point], context_length=10)
    ids, lengths = token_ids(), torch.tensor([9, 4, 2])
    found = forward.run(ids, lengths)[point]
    for row, length in enumerate(lengths.tolist()):
        alone = forward.run(ids[row : row + 1, :length], torch.tensor([length]))[point]
        torch.testing.assert_close(found[row, :length], alone[0], rtol=1e-4, atol=1e-5)
