"""mem(q, K, V) against hand computation and its limits; the block as a model that is collected from."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.models.forward import ActivationForward
from pipeline.models.hooks import available
from pipeline.models.load import load_model
from pipeline.networks.associative import ContextRead, mem, relation_network
from schemas.errors import ModelError
from schemas.model import ModelSpec


def pairs(seed: int = 0, count: int = 6, width: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    query, keys, values = (torch.randn(shape, generator=source) for shape in ((3, width), (count, width), (count, 4)))
    return query, keys, values


def test_by_hand() -> None:
    query, keys, values = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0], [5.0]])
    e = math.exp(0.5)  # scores (1, 2) over temperature 2
    assert float(mem(query, keys, values, 2.0)) == pytest.approx((3 * e + 5 * e**2) / (e + e**2))
    alike = mem(10 * query, 3 * keys, values, 2.0, cosine=True)
    first, second = (math.exp(one / math.sqrt(5) / 2) for one in (1, 2))
    assert float(alike) == pytest.approx((3 * first + 5 * second) / (first + second))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.permutations(range(6)))
def test_limits_and_order(seed: int, order: list[int]) -> None:
    query, keys, values = pairs(seed)
    best = (query @ keys.T).argmax(1)
    gap = (query @ keys.T).topk(2, dim=1).values.diff(dim=1).abs().min()
    torch.testing.assert_close(mem(query, keys, values, float(gap) / 50 + 1e-9), values[best])
    torch.testing.assert_close(mem(query, keys, values, 1e6), values.mean(0).expand(3, 4), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mem(query, keys[order], values[order]), mem(query, keys, values))


def test_swapped_keys_and_values_lead_back_from_a_value_to_its_key() -> None:
    keys, values = torch.eye(8)[:4], torch.eye(8)[4:]
    torch.testing.assert_close(mem(keys, keys, values, 0.01), values)
    torch.testing.assert_close(mem(values, values, keys, 0.01), keys)


def test_the_context_is_read_by_one_head_with_identity_weights() -> None:
    """Rows strictly before each: 0, 1, 2, ... of them."""
    source = torch.Generator().manual_seed(0)
    query, rows = (torch.randn(2, 7, 5, generator=source) for _ in range(2))
    found, pattern = ContextRead(0.7)(query, rows)
    assert pattern.shape == (2, 1, 7, 7)
    assert (pattern[0, 0] > 0).sum(1).tolist() == [0, 1, 2, 3, 4, 5, 6]
    earlier = torch.ones(7, 7).tril(-1).bool()
    attended = functional.scaled_dot_product_attention(query, rows, rows, attn_mask=earlier, scale=1 / 0.7)
    torch.testing.assert_close(found[:, 1:], attended[:, 1:])
    assert not bool(found[:, 0].any())
    for place in range(1, 7):
        torch.testing.assert_close(found[:, place], mem_of(query[:, place], rows[:, :place], 0.7))


def mem_of(query: torch.Tensor, rows: torch.Tensor, temperature: float) -> torch.Tensor:
    return torch.stack([mem(one, found, found, temperature) for one, found in zip(query, rows, strict=True)])


def test_it_is_collected_from_like_any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "pipeline.networks.associative.relation_network"
    monkeypatch.setenv("HEADWORKS_ALLOWED_IMPORTS", path)
    arguments = {"words": list("abcd"), "relations": {"a": ["b", "c"], "d": ["a"]}, "width": 6, "layers": 2}
    spec = {"path": f"python:{path}", "kind": "module", "dtype": "float32", "device": "cpu", "arguments": arguments}
    loaded = load_model(ModelSpec.model_validate(spec))
    points = [
        "hook_resid_pre",
        "hook_memory_out",
        "attn.hook_pattern",
        "hook_attn_out",
        "hook_mlp_out",
        "hook_resid_post",
    ]
    names = [f"blocks.{layer}.{point}" for layer in range(2) for point in points]
    assert available(loaded.module) == names
    ids = torch.tensor([[0, 1, 2, 3, 0], [3, 3, 0, 0, 0]])
    forward = ActivationForward(loaded, names, context_length=6)
    assert forward.padding_safe
    found = forward.run(ids, torch.tensor([5, 2]))
    network = loaded.module
    x = network.embed(ids)  # type: ignore[operator]
    keys, values = network.blocks[0].memory.keys, network.blocks[0].memory.values  # type: ignore[index,union-attr]
    q = x[:, 4] + mem(x[:, 4], keys, values)  # type: ignore[arg-type]
    q = q + mem_of(q, x[:, :4], 1.0)
    q = q + mem(q, values, keys)  # type: ignore[arg-type]
    torch.testing.assert_close(found["blocks.0.hook_resid_post"][0, 4], q[0])
    assert torch.equal(found["blocks.0.hook_resid_post"], found["blocks.1.hook_resid_pre"])
    torch.testing.assert_close(found["blocks.1.hook_resid_post"], network(ids))
    assert found["blocks.0.attn.hook_pattern"].shape == (2, 5, 6)


def test_relations_of_unknown_words_are_refused() -> None:
    with pytest.raises(ModelError, match=r"not in the vocabulary \['a', 'b'\]: \['x', 'y'\]"):
        relation_network("ab", {"a": ["x"], "y": ["b"]})
