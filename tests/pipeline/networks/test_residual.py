"""LAuReL residual connections against arXiv 2411.07501: sizes, the plain connection they begin as, special cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import CONTEXT, HEADS, LAYERS, VOCAB, token_ids
from torch import Tensor

from pipeline.networks import HeadworksDecoderForCausalLM, build_network
from schemas.network import NetworkSpec

D, R, K = 32, 4, 3
CONNECTIONS = 2 * LAYERS
BACK = [min(K, index) for index in range(CONNECTIONS)]  # earlier streams of each connection
EXTRA = {
    "rw": CONNECTIONS * 2,
    "lr": CONNECTIONS * 2 * R * D,
    "pa": CONNECTIONS * 2 * R * D + sum(BACK),
    "rw_lr": 2 * CONNECTIONS * (R * D + 1),
    "rw_lr_pa": sum(2 * R * D * (back + 1) + back + 2 for back in BACK),
}


def build(**residual: Any) -> HeadworksDecoderForCausalLM:
    facts: dict[str, Any] = {"layers": LAYERS, "d_model": D, "heads": HEADS, "context_length": CONTEXT}
    if residual:
        facts["residual"] = {"kind": "laurel", "rank": R, "previous": K, **residual}
    return build_network(NetworkSpec.model_validate(facts), VOCAB, seed=0)


def carry_over(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Give ``target`` all weights of ``source`` that it has too."""
    has = target.state_dict()
    common = {name: tensor for name, tensor in source.state_dict().items() if name in has and "gains" not in name}
    target.load_state_dict(common, strict=False)


def moved(network: torch.nn.Module, *names: str) -> None:
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(names):
                parameter.add_(torch.randn(parameter.shape, generator=source) * 0.3)


def logits(network: HeadworksDecoderForCausalLM) -> Tensor:
    with torch.no_grad():
        return network(token_ids()).logits


@pytest.mark.parametrize("weights", ["free", "softmax", "sigmoid"])
@pytest.mark.parametrize("form", EXTRA)
def test_all_begin_as_the_plain_connection_and_all_learn(form: str, weights: str) -> None:
    plain, network = build(), build(form=form, weights=weights)
    carry_over(plain, network)
    assert torch.equal(logits(network), logits(plain))
    size, before = (sum(p.numel() for p in one.parameters()) for one in (network, plain))
    assert size - before == EXTRA[form]
    network(token_ids()).logits.square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if "_connection" in name}
    moving = {
        name.rpartition(".")[2] for name, gradient in gradients.items() if gradient is not None and gradient.any()
    }
    assert all(gradient is not None for gradient in gradients.values())
    assert moving == ({"mix"} if "rw" in form else set()) | ({"writes"} if form != "rw" else set())


def test_without_earlier_streams_pa_is_lr() -> None:
    one, other = build(form="lr"), build(form="pa", previous=0)
    assert [name for name, _ in one.named_parameters()] == [name for name, _ in other.named_parameters()]
    moved(one, "writes")
    carry_over(one, other)
    assert torch.equal(logits(one), logits(other))
    assert not torch.equal(logits(one), logits(build()))


def test_weights_of_one_and_no_matrices_are_the_plain_connection() -> None:
    plain = build()
    for form in ("rw_lr", "rw_lr_pa"):
        network = build(form=form, weights="free")
        carry_over(plain, network)
        moved(network, "reads", "gains")
        assert torch.equal(logits(network), logits(plain))
        moved(network, "mix")
        assert not torch.equal(logits(network), logits(plain))


def test_weights_follow_their_normalisation() -> None:
    for weights, total in (("softmax", 2.0), ("sigmoid", None)):
        network = build(form="rw", weights=weights)
        moved(network, "mix")
        found = network.model.blocks[0].attn_connection._weights()
        assert bool(((found > 0) & (found < 2)).all())
        assert total is None or float(found.sum().detach()) == pytest.approx(total)


def test_earlier_streams_matter_as_far_as_they_reach() -> None:
    far, near = build(form="pa", previous=K), build(form="pa", previous=1)
    moved(far, "writes")
    carry_over(far, near)
    assert not torch.equal(logits(far), logits(near))
    with torch.no_grad():
        for name, parameter in far.named_parameters():
            if name.endswith("gains"):
                parameter[1:] = 0
        for name, parameter in near.named_parameters():
            if name.endswith("gains"):
                parameter.copy_(dict(far.named_parameters())[name][:1])
    torch.testing.assert_close(logits(far), logits(near))
