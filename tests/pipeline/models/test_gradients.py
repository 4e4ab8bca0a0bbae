"""Gradients at hook points against autograd on the whole model, and against finite differences."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_networks import CAUSAL, build, loaded, token_ids
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.forward import ActivationForward, needs_head
from pipeline.models.hooks import available, is_pattern, resolve, substitute
from schemas.errors import HookPointError, ModelError

LENGTHS = torch.tensor([9, 5, 1])


def loss_of(model: Any, ids: Tensor, lengths: Tensor) -> Tensor:
    """Cross-entropy of every next token of every context, summed; by transformers' logits."""
    logits = model(ids).logits
    parts = [
        functional.cross_entropy(logits[row, : length - 1], ids[row, 1:length], reduction="sum")
        for row, length in enumerate(lengths.tolist())
        if length > 1
    ]
    return sum(parts, torch.zeros(()))


def by_autograd(model: Any, name: str, ids: Tensor, lengths: Tensor) -> Tensor:
    """The gradient with respect to zeros that are added to the activation."""
    (site,) = resolve(model.base_model, [name])
    added: list[Tensor] = []

    def add(tensor: Tensor) -> Tensor:
        added.append(torch.zeros_like(tensor).requires_grad_())
        return tensor + added[-1]

    handles = substitute(site, add)
    (gradient,) = torch.autograd.grad(loss_of(model, ids, lengths), added)
    for handle in handles:
        handle.remove()
    return gradient


@pytest.mark.parametrize("family", CAUSAL)
def test_every_point_has_the_gradient_that_autograd_gives_for_the_whole_model(family: str) -> None:
    model, ids = build(family), token_ids()
    names = [name for name in available(model) if name.startswith("blocks.1.") and not is_pattern(name)]
    forward = ActivationForward(loaded(model, with_head=True), [f"{name}.grad" for name in names])
    found = forward.run(ids, LENGTHS)
    assert [*found] == [*forward.widths] == [f"{name}.grad" for name in names]
    for name in names:
        expected = by_autograd(model, name, ids, LENGTHS)
        assert bool(expected.any())
        torch.testing.assert_close(found[f"{name}.grad"], expected, rtol=1e-4, atol=1e-5)


def test_finite_differences_agree() -> None:
    model, ids, name = build("gpt2"), token_ids(), "blocks.1.hook_mlp_out"
    found = ActivationForward(loaded(model, with_head=True), [f"{name}.grad"]).run(ids, LENGTHS)[f"{name}.grad"]
    exact = copy.deepcopy(model).double()
    (site,) = resolve(exact.base_model, [name])
    step = 1e-4
    for row, token, channel in ((0, 0, 3), (0, 7, 11), (1, 2, 0), (1, 3, 5)):
        losses = []
        for sign in (1, -1):

            def moved(tensor: Tensor, sign: int = sign) -> Tensor:
                tensor = tensor.clone()
                tensor[row, token, channel] += sign * step  # noqa: B023 - called before the loop goes on
                return tensor

            (handle,) = substitute(site, moved)
            losses.append(float(loss_of(exact, ids, LENGTHS)))
            handle.remove()
        assert float(found[row, token, channel]) == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-3)


def test_a_context_has_the_same_gradient_alone_and_in_a_batch() -> None:
    names = ["blocks.0.hook_resid_post.grad", "blocks.2.attn.hook_z.grad"]
    forward = ActivationForward(loaded(build("gemma2"), with_head=True), names)
    ids = token_ids()
    together = forward.run(ids, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = forward.run(ids[row : row + 1, :length], torch.tensor([length]))
        for name in names:
            torch.testing.assert_close(together[name][row, :length], alone[name][0], rtol=1e-4, atol=1e-5)


def test_the_last_token_predicts_nothing_behind_its_keys() -> None:
    """At the end of the last block a row has but one prediction to change, and the last row none."""
    name = "blocks.2.hook_resid_post.grad"
    found = ActivationForward(loaded(build("gpt2"), with_head=True), [name]).run(token_ids(), LENGTHS)[name]
    for row, length in enumerate(LENGTHS.tolist()):
        assert not found[row, length - 1 :].any()
        assert bool((found[row, : length - 1] != 0).any(dim=1).all())


def test_activations_are_collected_beside_gradients_and_all_repeats_bit_for_bit() -> None:
    whole = loaded(build("neox_parallel"), with_head=True)
    plain = ["blocks.0.hook_mlp_in", "blocks.2.hook_resid_post"]
    both = ["blocks.0.hook_mlp_in", "blocks.1.hook_resid_pre.grad", "blocks.2.hook_resid_post"]
    expected = ActivationForward(whole, plain).run(token_ids(), LENGTHS)
    forward = ActivationForward(whole, both)
    first, second = (forward.run(token_ids(), LENGTHS) for _ in range(2))
    assert [*first] == both
    for name in both:
        assert torch.equal(first[name], second[name])
        assert not first[name].requires_grad
    for name in plain:
        torch.testing.assert_close(first[name], expected[name], rtol=1e-5, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in whole.module.parameters())


def test_logits_are_made_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "blocks.1.hook_resid_post.grad"
    forward = ActivationForward(loaded(build("gemma2"), with_head=True), [name])
    whole = forward.run(token_ids(), LENGTHS)[name]
    monkeypatch.setattr("pipeline.models.head.LOGITS_BYTES", 2 * 4 * 40)
    torch.testing.assert_close(forward.run(token_ids(), LENGTHS)[name], whole, rtol=1e-5, atol=1e-6)


def test_what_has_no_next_token_loss_is_refused() -> None:
    with pytest.raises(ModelError, match="kind 'masked_lm'"):
        ActivationForward(loaded(build("bert"), with_head=True, kind="masked_lm"), ["blocks.0.hook_mlp_out.grad"])
    with pytest.raises(ModelError, match="loaded without its head"):
        ActivationForward(loaded(build("llama")), ["blocks.0.hook_mlp_out.grad"])
    whole = loaded(build("llama", attention="eager"), with_head=True)
    with pytest.raises(HookPointError, match="pattern has no gradient"):
        ActivationForward(whole, ["blocks.0.attn.hook_pattern.grad"], context_length=9)
    with pytest.raises(HookPointError, match=r"did you mean 'blocks\.0\.hook_mlp_out'"):
        ActivationForward(loaded(build("llama"), with_head=True), ["blocks.0.hook_mlp_uot.grad"])
    unsteady = replace(whole, spec=whole.spec.model_copy(update={"attention": "flash_attention_2"}))
    with pytest.raises(ModelError, match="changes from run to run"):
        ActivationForward(unsteady, ["blocks.0.hook_mlp_out.grad"])
    with pytest.raises(HookPointError, match="only whole models"):
        resolve(build("llama"), ["blocks.0.hook_mlp_out.grad"])


def test_a_point_that_is_overwritten_in_place_is_refused() -> None:
    """What was there has no tensor any more whose gradient could be asked for."""
    model = build("gpt2")
    model.transformer.h[1].mlp.act = nn.ReLU(inplace=True)
    for before in ([], ["blocks.0.hook_resid_post.grad"]):
        with pytest.raises(HookPointError, match=r"mlp\.hook_pre\.grad.*in place"):
            ActivationForward(loaded(model, with_head=True), [*before, "blocks.1.mlp.hook_pre.grad"])


def test_which_jobs_need_the_head() -> None:
    assert needs_head(["blocks.0.hook_resid_post", "blocks.0.hook_resid_post.grad"])
    assert not needs_head(["blocks.0.hook_resid_post", "module:layers.0.gradient:out"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_bytes_each_time() -> None:
    model = build("llama", max_position_embeddings=512).cuda().bfloat16()
    whole = replace(loaded(model, with_head=True), device=torch.device("cuda"), dtype=torch.bfloat16)
    names = ["blocks.0.hook_resid_pre.grad", "blocks.1.attn.hook_v.grad"]
    forward = ActivationForward(whole, names)
    ids, lengths = token_ids(16, 512), torch.full((16,), 512)
    first = forward.run(ids, lengths)
    for _ in range(20):
        again = forward.run(ids, lengths)
        assert all(torch.equal(first[name], again[name]) for name in names)
