"""PID attention: plain without gains, nothing in layer 0, NeuTRENO with P alone; tokens stay apart."""

from __future__ import annotations

import pytest
import torch
from small_networks import LAYERS, build, loaded, token_ids

from pipeline.models.forward import ActivationForward
from pipeline.networks.carried import Carried
from pipeline.networks.pid import steer
from schemas.network import PidAttention


def gains(p: float, i: float, d: float) -> dict[str, object]:
    return {"attention": {"kind": "pid", "proportional": p, "integral": i, "derivative": d}}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_gains_it_is_plain_attention_bit_for_bit(attention: str) -> None:
    plain, steered = build(), build(**gains(0, 0, 0))
    for network in (plain, steered):
        network.set_attn_implementation(attention)
    assert torch.equal(plain(token_ids()).logits, steered(token_ids()).logits)


def test_layer_0_is_unaffected_and_all_others_are_not() -> None:
    ids, lengths = token_ids(), torch.full((3,), 9)
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(LAYERS)]
    for one in ((0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5)):
        plain, steered = (
            ActivationForward(loaded(n), names).run(ids, lengths) for n in (build(), build(**gains(*one)))
        )
        assert torch.equal(plain[names[0]], steered[names[0]])
        for name in names[1:]:
            assert not torch.allclose(plain[name], steered[name], atol=1e-3)


def test_terms_are_those_of_the_controller() -> None:
    """P alone is NeuTRENO: mixed + P (V^0 - V^l)."""
    source = torch.Generator().manual_seed(0)
    values = [torch.randn(2, 3, 4, 5, generator=source) for _ in range(4)]
    mixed = [torch.randn(2, 3, 4, 5, generator=source) for _ in range(4)]
    errors = [values[0] - value for value in values]
    for p, i, d in ((0.6, 0.0, 0.0), (0.5, 0.2, 0.3)):
        carried, control = Carried(), PidAttention(proportional=p, integral=i, derivative=d)
        for layer in range(4):
            found = steer(control, mixed[layer], values[layer], carried, layer)
            expected = mixed[layer] + p * errors[layer]
            if i:
                before = errors[layer - 1] if layer else errors[0]
                expected = expected + i * sum(errors[: layer + 1]) + d * (errors[layer] - before)
            torch.testing.assert_close(found, expected)
