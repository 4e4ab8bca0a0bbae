"""Hook points of the decoder: collected, replaced, and differentiated as those of any other model."""

from __future__ import annotations

import pytest
import torch
from small_networks import CONTEXT, HEADS, LAYERS, OPTIONS, build, loaded, spec_of, token_ids
from torch.nn import functional

from pipeline.models.forward import ActivationForward
from pipeline.models.hooks import available, is_pattern, resolve, substitute
from pipeline.models.splice import SplicedForward
from pipeline.models.stages import cut
from schemas.errors import HookPointError, ModelError
from schemas.network import LOCATIONS

POINTS = {
    "attn_in": "hook_attn_in", "attn_q": "attn.hook_q", "attn_k": "attn.hook_k", "attn_v": "attn.hook_v",
    "attn_out": "hook_attn_out", "mlp_in": "hook_mlp_in", "mlp_neuron": "mlp.hook_post", "mlp_out": "hook_mlp_out",
}  # fmt: skip
LENGTHS = torch.tensor([9, 5, 1])


def test_points_have_transformerlens_names() -> None:
    network = build()
    inner = ["hook_resid_pre", "hook_attn_in", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z",
             "hook_attn_out", "hook_resid_mid", "hook_mlp_in", "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out",
             "hook_resid_post"]  # fmt: skip
    assert available(network) == [f"blocks.{layer}.{point}" for layer in range(LAYERS) for point in inner]
    network.set_attn_implementation("eager")
    assert "blocks.0.attn.hook_pattern" in available(network)


def test_node_locations_are_collected_behind_their_abstopk() -> None:
    spec, ids = spec_of("sparse"), token_ids()
    names = {location: f"blocks.1.{POINTS[location]}" for location in LOCATIONS}
    found = ActivationForward(loaded(build("sparse")), [*names.values()]).run(ids, torch.full((3,), 9))
    for location, name in names.items():
        assert found[name].shape == (*ids.shape, spec.width(location))
        assert (found[name] != 0).sum(-1).unique().tolist() == [spec.kept(location)], location


@pytest.mark.parametrize("option", OPTIONS)
def test_points_add_up_and_rows_do_not_see_padding(option: str) -> None:
    ids, names = token_ids(), [f"blocks.1.hook_{one}" for one in ("resid_pre", "attn_out", "resid_mid", "resid_post")]
    network = build(option)
    forward = ActivationForward(loaded(network), names)
    assert forward.padding_safe
    found = forward.run(ids, LENGTHS)
    sums = torch.isclose(found[names[2]], found[names[0]] + found[names[1]], atol=1e-5).all()
    assert bool(sums) == (option not in ("laurel", "looking_back"))
    alone = forward.run(ids[1:2, :5], torch.tensor([5]))
    for name in names:
        torch.testing.assert_close(found[name][1:2, :5], alone[name], rtol=1e-4, atol=1e-5)
    whole = ActivationForward(loaded(network), [f"blocks.{LAYERS - 1}.hook_resid_post"]).run(ids, LENGTHS)
    expected = network.model.ln_f(whole[f"blocks.{LAYERS - 1}.hook_resid_post"])
    torch.testing.assert_close(network.model(ids).last_hidden_state, expected)


def test_patterns_sum_to_one_without_a_sink() -> None:
    ids, name = token_ids(), "blocks.1.attn.hook_pattern"
    for option in ("plain", "sink"):
        network = build(option)
        with pytest.raises(HookPointError, match=r"need model\.attention: eager"):
            ActivationForward(loaded(network), [name], context_length=CONTEXT)
        forward = ActivationForward(loaded(network, attention="eager"), [name], context_length=CONTEXT)
        found = forward.run(ids, torch.full((3,), 9))[name].unflatten(2, (HEADS, CONTEXT))
        assert not bool(found[..., 9:].any())
        sums = found.sum(-1)
        if option == "plain":
            torch.testing.assert_close(sums, torch.ones_like(sums))
        else:
            assert bool((sums < 0.999).all())
            assert bool((sums > 0.01).all())


@pytest.mark.parametrize("option", OPTIONS)
def test_gradients_are_those_of_the_whole_model(option: str) -> None:
    network, ids = build(option), token_ids()
    names = [name for name in available(network) if name.startswith("blocks.1.") and not is_pattern(name)]
    found = ActivationForward(loaded(network, with_head=True), [f"{name}.grad" for name in names]).run(ids, LENGTHS)
    for name in names:
        (site,) = resolve(network.base_model, [name])
        added: list[torch.Tensor] = []

        def add(tensor: torch.Tensor, added: list[torch.Tensor] = added) -> torch.Tensor:
            added.append(torch.zeros_like(tensor).requires_grad_())
            return tensor + added[-1]

        handles = substitute(site, add)
        logits = network(ids).logits
        loss = sum(
            functional.cross_entropy(logits[row, : length - 1], ids[row, 1:length], reduction="sum")
            for row, length in enumerate(LENGTHS.tolist())
            if length > 1
        )
        (expected,) = torch.autograd.grad(loss, added)
        for handle in handles:
            handle.remove()
        assert bool(expected.any()), name
        torch.testing.assert_close(found[f"{name}.grad"], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("option", OPTIONS)
def test_splicing_gives_the_loss_of_the_whole_model(option: str) -> None:
    network, ids = build(option), token_ids()
    lengths, counted = torch.full((3,), 9), torch.ones_like(ids, dtype=torch.bool)
    names = [f"blocks.1.{point}" for point in ("hook_resid_mid", "attn.hook_v", "mlp.hook_post")]
    batch = SplicedForward(loaded(network, with_head=True), names).begin(ids, lengths, counted)
    logits = network(ids).logits[:, :-1]
    expected = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    assert batch.clean.total == pytest.approx(float(expected), rel=1e-5)
    assert batch.self_check() == 0.0
    gone = batch.loss({names[1]: torch.zeros_like(batch.activations[names[1]])})
    (site,) = resolve(network.base_model, [names[1]])
    handles = substitute(site, torch.zeros_like)
    logits = network(ids).logits[:, :-1]
    for handle in handles:
        handle.remove()
    without = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    assert gone.total == pytest.approx(float(without), rel=1e-5)
    assert gone.total != pytest.approx(batch.clean.total, rel=1e-4)


def test_blocks_that_hand_on_more_than_the_stream_run_in_one_process() -> None:
    hooks = ["blocks.2.hook_resid_post"]
    assert len(cut(build().base_model, hooks, 0, 3).layers) == 1
    assert len(cut(build("laurel").base_model, hooks, 0, 3).layers) == 1
    for option, said in (
        ("pid", "PID attention of layer 1 needs the values of all layers before it"),
        ("looking_back", "residual connection 2 looks back at 2 streams, 0 are there"),
    ):
        network = build(option)
        with pytest.raises(ModelError, match="hand on more than the hidden state"):
            cut(network.base_model, hooks, 0, 3)
        with pytest.raises(ModelError, match=said):
            network.model.blocks[1](torch.zeros(1, 2, 16))
