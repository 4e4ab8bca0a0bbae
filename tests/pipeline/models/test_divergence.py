"""The divergence of a spliced model and its gradient, against hooks on the whole model and autograd through it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_networks import CAUSAL, VOCAB, build, loaded, token_ids
from torch import Tensor, nn

from pipeline.models import head
from pipeline.models.divergence import DivergenceForward
from pipeline.models.hooks import find_blocks
from schemas.errors import HookPointError, ModelError
from schemas.model import ModelSpec

LENGTHS = torch.tensor([9, 5, 1])
INSIDE = torch.arange(9) < LENGTHS[:, None]
TARGET, LATER = "blocks.1.hook_resid_post", ["blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"]


def scaled(factor: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda acts: acts * factor + 0.1 * factor.sin()


def by_hand(model: nn.Module, ids: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """``(nats, downstream)`` with graphs, by plain hooks on a model that runs whole, in terms of probabilities."""
    blocks = find_blocks(model)
    assert blocks is not None
    seen: list[list[Tensor]] = []

    def run(change: Callable[[Tensor], Tensor]) -> Tensor:
        seen.append([])
        first, last = blocks.layers[1], blocks.layers[2]

        def on_first(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
            whole = output if isinstance(output, Tensor) else output[0]
            seen[-1].append(change(whole))
            return seen[-1][0] if isinstance(output, Tensor) else (seen[-1][0], *output[1:])

        def on_last(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            seen[-1].append(output if isinstance(output, Tensor) else output[0])

        handles = [first.register_forward_hook(on_first), last.register_forward_hook(on_last)]
        logits = model(ids).logits
        for handle in handles:
            handle.remove()
        return torch.softmax(logits.double(), dim=-1)[INSIDE]

    with torch.no_grad():
        truth = run(lambda acts: acts)
    given = run(scaled(factor))
    nats = (truth * (truth.log() - given.log())).sum()
    errors = [
        (((new - old) ** 2).sum(2) / (old**2).sum(2))[INSIDE].sum() for old, new in zip(seen[0], seen[1], strict=True)
    ]
    return nats, sum(errors) / len(errors)  # type: ignore[return-value]


@pytest.mark.parametrize("family", CAUSAL)
def test_divergence_and_gradient_are_those_of_the_whole_model(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In slices of two rows of logits; Gemma 2 caps them softly."""
    monkeypatch.setattr(head, "LOGITS_BYTES", 2 * 4 * VOCAB)
    model, ids = build(family), token_ids()
    factor = torch.linspace(0.2, 1.5, 16).requires_grad_()
    nats, downstream = by_hand(model, ids, factor)
    (expected,) = torch.autograd.grad(0.7 * nats + 0.2 * downstream, factor)

    forward = DivergenceForward(loaded(model, with_head=True), TARGET, downstream=LATER)
    found = forward.backward(ids, LENGTHS, lambda acts: scaled(factor)(acts[TARGET]), weight=0.7, downstream_weight=0.2)
    assert found.nats == pytest.approx(nats.item(), rel=1e-4)
    assert found.downstream == pytest.approx(downstream.item(), rel=1e-4)
    assert found.nats > 0.01
    torch.testing.assert_close(factor.grad, expected, rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_activation_itself_diverges_by_nothing() -> None:
    forward = DivergenceForward(loaded(build("llama"), with_head=True), TARGET, downstream=LATER)
    factor = torch.ones(16, requires_grad=True)
    found = forward.backward(
        token_ids(), LENGTHS, lambda acts: acts[TARGET] * factor, weight=1.0, downstream_weight=1.0
    )
    assert (found.nats, found.downstream) == (0.0, 0.0)
    assert factor.grad is not None
    assert float(factor.grad.abs().max()) < 1e-5


def test_a_transcoder_reads_its_source() -> None:
    source, target = "blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"
    model = build("llama")
    mlp = model.model.layers[1].mlp
    forward = DivergenceForward(loaded(model, with_head=True), target, sources=[source])
    assert forward.backward(token_ids(), LENGTHS, lambda acts: mlp(acts[source]), weight=1.0).nats == 0.0


def test_padding_counts_for_nothing() -> None:
    forward = DivergenceForward(loaded(build("llama"), with_head=True), TARGET)
    ids, found = token_ids(), []
    for tail in (0, 3):
        ids[1, 5:] = tail
        factor = torch.linspace(0.2, 1.5, 16).requires_grad_()
        nats = forward.backward(ids, LENGTHS, lambda acts: acts[TARGET] * factor, weight=1.0).nats  # noqa: B023
        found.append((nats, factor.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1])


def test_a_point_before_the_target_is_refused() -> None:
    forward = DivergenceForward(loaded(build("llama"), with_head=True), TARGET, downstream=["blocks.1.hook_resid_mid"])
    factor = torch.ones(16, requires_grad=True)
    with pytest.raises(HookPointError, match=r"'blocks\.1\.hook_resid_mid' is not behind 'blocks\.1\.hook_resid_post'"):
        forward.backward(token_ids(), LENGTHS, lambda acts: acts[TARGET] * factor, weight=1.0)


def test_attention_without_a_fixed_order_is_refused() -> None:
    found = loaded(build("llama"), with_head=True)
    spec = ModelSpec(path="x", attention="flash_attention_2")
    with pytest.raises(ModelError, match="flash_attention_2"):
        DivergenceForward(type(found)(**{**vars(found), "spec": spec}), TARGET)
