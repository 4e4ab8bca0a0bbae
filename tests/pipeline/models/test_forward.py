from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import CAUSAL, ENCODERS, LAYERS, Doubler, build, count_starts, kind_of, loaded, token_ids
from torch import nn

from pipeline.models.forward import ActivationForward
from pipeline.models.hooks import find_blocks
from schemas.errors import HookPointError, ModelError


def test_nothing_runs_behind_the_last_hook_point() -> None:
    model = build("llama")
    forward = ActivationForward(loaded(model), ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_in"])
    starts = count_starts(model)
    forward.run(token_ids(), torch.full((3,), 9))
    assert starts["model.layers.0"] == starts["model.layers.1"] == starts["model.layers.1.self_attn"] == 1
    for never in ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.down_proj", "model.layers.2", "model.norm"):
        assert starts[never] == 0
    assert starts["lm_head"] == starts[""] == 0


@pytest.mark.parametrize("family", [*CAUSAL, *ENCODERS])
def test_blocks_behind_the_last_point_are_cut_and_the_loaded_network_stays_whole(family: str) -> None:
    model = build(family)
    expected = model(token_ids())[0]
    forward = ActivationForward(loaded(model, kind=kind_of(family)), ["blocks.1.hook_resid_pre"])
    kept, whole = find_blocks(forward._network), find_blocks(model)
    assert kept is not None
    assert whole is not None
    assert (len(kept.layers), len(whole.layers)) == (2, LAYERS)
    starts = count_starts(model)
    forward.run(token_ids(), torch.full((3,), 9))
    assert [starts[f"{whole.path}.{layer}"] for layer in range(LAYERS)] == [1, 1, 0]
    assert torch.equal(model(token_ids())[0], expected)


def test_all_ones_as_a_mask_leave_attention_its_fast_path() -> None:
    model, masks = build("llama"), []
    model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _, __, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    forward = ActivationForward(loaded(model), ["blocks.0.hook_attn_out"])
    forward.run(token_ids(), torch.tensor([9, 4, 2]))
    assert masks
    assert all(mask is None for mask in masks)


@pytest.mark.parametrize("family", [*CAUSAL, *ENCODERS])
@settings(max_examples=5, deadline=None)
@given(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4), filling=st.integers(0, 39))
def test_padding_changes_no_real_row(family: str, lengths: list[int], filling: int) -> None:
    point = "blocks.2.hook_resid_post"
    forward = ActivationForward(loaded(build(family), kind=kind_of(family)), [point])
    ids = token_ids(len(lengths), 8)
    for row, length in enumerate(lengths):
        ids[row, length:] = filling
    found = forward.run(ids, torch.tensor(lengths))[point]
    for row, length in enumerate(lengths):
        alone = forward.run(ids[row : row + 1, :length], torch.tensor([length]))[point]
        torch.testing.assert_close(found[row, :length], alone[0], rtol=1e-4, atol=1e-4)


def test_widths_are_measured() -> None:
    names = ["module:layers.0.mlp.gate_proj:out", "module:layers.0.self_attn.k_proj:out", "blocks.1.hook_mlp_out"]
    forward = ActivationForward(loaded(build("llama")), names)
    assert forward.widths == dict(zip(names, [24, 8, 16], strict=True))


def test_a_point_that_is_no_row_per_token_is_refused() -> None:
    with pytest.raises(HookPointError, match=r"shape \[2, 12\].*\[batch, context, width\]"):
        ActivationForward(loaded(Doubler(), kind="module"), ["module:flat:out"])


def test_a_module_that_never_runs_is_refused() -> None:
    model = Doubler()
    model.unused = nn.Linear(2, 2)
    with pytest.raises(HookPointError, match="never reached"):
        ActivationForward(loaded(model, kind="module"), ["module:unused:out"])


def test_what_the_network_overwrites_is_copied() -> None:
    model = Doubler()
    forward = ActivationForward(loaded(model, kind="module"), ["module:linear:out", "module:act:out"])
    found = forward.run(token_ids(), torch.full((3,), 9))
    rows = model.embed(token_ids())
    linear = model.linear(rows + rows.mean(dim=1, keepdim=True))
    assert torch.equal(found["module:linear:out"], linear)
    assert bool((linear < 0).any())
    assert torch.equal(found["module:act:out"], linear.relu())


def test_a_module_that_looks_ahead_never_sees_padding() -> None:
    forward = ActivationForward(loaded(Doubler(), kind="module"), ["module:linear:out"])
    ids, lengths = token_ids(4, 9), torch.tensor([9, 3, 9, 5])
    found = forward.run(ids, lengths)["module:linear:out"]
    for row, length in enumerate(lengths.tolist()):
        alone = forward.run(ids[row : row + 1, :length], torch.tensor([length]))["module:linear:out"]
        torch.testing.assert_close(found[row, :length], alone[0])


def test_two_forwards_of_one_network_do_not_disturb_each_other() -> None:
    whole: Any = loaded(build("gpt2"))
    first = ActivationForward(whole, ["blocks.0.hook_mlp_out"])
    second = ActivationForward(whole, ["blocks.2.hook_mlp_out"])
    ids, lengths = token_ids(), torch.full((3,), 9)
    before = first.run(ids, lengths)["blocks.0.hook_mlp_out"]
    second.run(ids, lengths)
    assert torch.equal(first.run(ids, lengths)["blocks.0.hook_mlp_out"], before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in whole.module.modules())


def test_results_carry_no_gradient_and_repeat_bit_for_bit() -> None:
    forward = ActivationForward(loaded(build("gemma2")), ["blocks.2.hook_resid_mid"])
    ids, lengths = token_ids(), torch.full((3,), 9)
    first, second = (forward.run(ids, lengths)["blocks.2.hook_resid_mid"] for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad


@pytest.mark.parametrize("family", [*CAUSAL, *ENCODERS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_precision_passes_the_probe(family: str, dtype: torch.dtype) -> None:
    whole = loaded(build(family).to(dtype), kind=kind_of(family))
    forward = ActivationForward(replace(whole, dtype=dtype), ["blocks.2.hook_mlp_out"])
    found = forward.run(token_ids(), torch.tensor([9, 2, 4]))["blocks.2.hook_mlp_out"]
    assert found.dtype == dtype
    assert forward.padding_safe == (family not in ENCODERS)


def test_a_network_that_overflows_says_so() -> None:
    model = build("llama")
    model.model.layers[1].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(ModelError, match="block 1 of LlamaModel gives NaN or Inf"):
        ActivationForward(loaded(model), ["blocks.1.hook_mlp_in"])
