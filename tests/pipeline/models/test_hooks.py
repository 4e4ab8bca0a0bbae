"""Every hook name of every family against the block's arithmetic written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_networks import FAMILIES, LAYERS, build, kind_of, loaded, token_ids
from torch import Tensor, nn

from pipeline.models.forward import ActivationForward
from pipeline.models.hooks import available, find_blocks, resolve
from schemas.errors import HookPointError

POST_NORM = ("bert", "roberta")
ATTENTION = {"gpt2": "attn", "neox_parallel": "attention", "neox_sequential": "attention", "modernbert": "attn",
             "t5": "layer.0.SelfAttention"} | dict.fromkeys(POST_NORM, "attention.self")  # fmt: skip
FINAL_NORM = {"gpt2": "ln_f", "neox_parallel": "final_layer_norm", "neox_sequential": "final_layer_norm",
              "modernbert": "final_norm", "t5": "encoder.final_layer_norm"}  # fmt: skip
NORMS = {"gpt2": ("ln_1", "ln_2"), "modernbert": ("attn_norm", "mlp_norm"),
         "t5": ("layer.0.layer_norm", "layer.1.layer_norm")}  # fmt: skip
VERIFIED = [name for name in FAMILIES if name != "granite"]


def attend(layer: nn.Module, path: str, call: tuple[tuple[Any, ...], dict[str, Any]], normed: Tensor) -> Tensor:
    """The attention module on states computed by hand, with the mask and positions that the network gave it."""
    args, kwargs = call
    if "hidden_states" in kwargs:
        return layer.get_submodule(path)(*args, **{**kwargs, "hidden_states": normed})[0]
    return layer.get_submodule(path)(normed, *args[1:], **kwargs)[0]


def by_hand(family: str, layer: Any, pre: Tensor, call: Any) -> dict[str, Tensor]:
    path = ATTENTION.get(family, "self_attn")
    if family in POST_NORM:
        attn = layer.attention.output.dense(attend(layer, path, call, pre))
        mid = pre + attn
        mlp_in = layer.attention.output.LayerNorm(mid)
        mlp = layer.output.dense(layer.intermediate(mlp_in))
        post = mlp_in + mlp
        return {"resid_pre": pre, "attn_out": attn, "resid_mid": mid, "mlp_in": mlp_in, "mlp_out": mlp,
                "resid_post": post, "normalized_resid_post": layer.output.LayerNorm(post)}  # fmt: skip
    names = NORMS.get(family, ("input_layernorm", "post_attention_layernorm"))
    norm_1, norm_2 = map(layer.get_submodule, names)
    attn = attend(layer, path, call, norm_1(pre))
    if family == "neox_parallel":
        mlp_in = norm_2(pre)
        mlp = layer.mlp(mlp_in)
        return {"resid_pre": pre, "attn_out": attn, "mlp_in": mlp_in, "mlp_out": mlp, "resid_post": pre + attn + mlp}
    if family == "gemma2":
        attn = layer.post_attention_layernorm(attn)
        mid = pre + attn
        mlp_in = layer.pre_feedforward_layernorm(mid)
        mlp = layer.post_feedforward_layernorm(layer.mlp(mlp_in))
    else:
        mid = pre + attn
        mlp_in = norm_2(mid)
        mlp = (layer.layer[1].DenseReluDense if family == "t5" else layer.mlp)(mlp_in)
    return {"resid_pre": pre, "attn_out": attn, "resid_mid": mid, "mlp_in": mlp_in, "mlp_out": mlp,
            "resid_post": mid + mlp}  # fmt: skip


@pytest.mark.parametrize("family", VERIFIED)
def test_every_hook_is_what_its_name_says(family: str) -> None:
    model = build(family)
    ids, blocks = token_ids(), find_blocks(model)
    assert blocks is not None
    calls: list[Any] = []
    for layer in blocks.layers:
        layer.get_submodule(ATTENTION.get(family, "self_attn")).register_forward_pre_hook(
            lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
    states = model.base_model(ids, use_cache=False, output_hidden_states=True).hidden_states
    calls = calls[:LAYERS]
    forward = ActivationForward(loaded(model, kind=kind_of(family)), available(model), context_length=9)
    found = forward.run(ids, torch.full((3,), 9))
    assert list(found) == available(model)
    for index, layer in enumerate(blocks.layers):
        expected = by_hand(family, layer, states[index], calls[index])
        assert {name for name in found if name.startswith(f"blocks.{index}.hook_")} == {
            f"blocks.{index}.hook_{point}" for point in expected
        }
        for point, tensor in expected.items():
            torch.testing.assert_close(found[f"blocks.{index}.hook_{point}"], tensor, rtol=1e-4, atol=1e-5)
    last = found[f"blocks.{LAYERS - 1}.hook_{'normalized_resid_post' if family in POST_NORM else 'resid_post'}"]
    if family not in POST_NORM:  # transformers' last hidden state is after the final norm
        last = model.base_model.get_submodule(FINAL_NORM.get(family, "norm"))(last)
    torch.testing.assert_close(last, states[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", VERIFIED)
def test_the_stream_of_a_block_begins_where_the_one_before_ended(family: str) -> None:
    end = "hook_normalized_resid_post" if family in POST_NORM else "hook_resid_post"
    names = [f"blocks.0.{end}", "blocks.1.hook_resid_pre"]
    found = ActivationForward(loaded(build(family), kind=kind_of(family)), names).run(token_ids(), torch.full((3,), 9))
    assert torch.equal(found[names[0]], found[names[1]])


def test_parallel_blocks_have_no_middle() -> None:
    with pytest.raises(HookPointError, match="no value between them"):
        resolve(build("neox_parallel"), ["blocks.1.hook_resid_mid"])


def test_an_unknown_name_lists_the_nearest_and_the_number_of_layers() -> None:
    model = build("llama")
    with pytest.raises(HookPointError, match=r"3 layers .*did you mean 'blocks\.1\.hook_resid_post'"):
        resolve(model, ["blocks.1.hook_resid_pots"])
    with pytest.raises(HookPointError, match=r"blocks\.0 to blocks\.2"):
        resolve(model, ["blocks.3.hook_resid_post"])
    with pytest.raises(HookPointError, match=r"no module 'layers\.1\.mpl'.*'module:model\.layers\.1\.mlp:out'"):
        resolve(model, ["module:layers.1.mpl:out"])
    with pytest.raises(HookPointError, match="does not exist"):
        resolve(model, ["layers.1.mlp"])


def test_a_module_path_is_read_from_the_backbone_and_from_the_model() -> None:
    model = build("llama")
    names = ["module:layers.1.mlp:in", "module:model.layers.1.mlp:in", "blocks.1.hook_mlp_in"]
    for root in (model, model.base_model):
        sites = resolve(root, names)
        assert {id(site.module) for site in sites} == {id(model.model.layers[1].mlp)}
        assert [site.layer for site in sites] == [1, 1, 1]
    (embedding,) = resolve(model, ["module:model.embed_tokens:out"])
    assert embedding.layer is None


def test_an_unknown_structure_has_module_names_only() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert available(model) == ["module:0:in", "module:0:out", "module:1:in", "module:1:out"]
    with pytest.raises(HookPointError, match="no known structure"):
        resolve(model, ["blocks.0.hook_resid_post"])


def test_a_block_that_scales_its_branches_is_found_out() -> None:
    """Granite has Llama's module names and other sums."""
    with pytest.raises(HookPointError, match="is not hook_resid_pre"):
        ActivationForward(loaded(build("granite")), ["blocks.0.hook_mlp_out"])
    forward = ActivationForward(loaded(build("granite")), ["module:layers.0.mlp:out"])
    assert forward.widths == {"module:layers.0.mlp:out": 16}
