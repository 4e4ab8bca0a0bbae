from __future__ import annotations

import pytest
import torch
from tiny_networks import CAUSAL, LAYERS, VOCAB, Doubler, build, count_starts, loaded, token_ids
from torch import Tensor
from torch.nn import functional

from pipeline.models import head
from pipeline.models.hooks import available, find_blocks, is_pattern
from pipeline.models.splice import SplicedForward
from schemas.errors import HookPointError, ModelError

LENGTHS = torch.tensor([9, 5, 1])
EVERYWHERE = torch.ones((3, 9), dtype=torch.bool)


def by_hand(logits: Tensor, ids: Tensor, lengths: Tensor, mask: Tensor) -> tuple[float, int]:
    total, count = 0.0, 0
    for row, length in enumerate(lengths.tolist()):
        for position in range(1, length):
            if mask[row, position]:
                total -= float(functional.log_softmax(logits[row, position - 1].double(), dim=-1)[ids[row, position]])
                count += 1
    return total, count


@pytest.mark.parametrize("family", CAUSAL)
def test_the_clean_loss_is_that_of_the_whole_model(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In slices of two rows; Gemma 2 caps its logits softly."""
    monkeypatch.setattr(head, "LOGITS_BYTES", 2 * 4 * VOCAB)
    model, ids = build(family), token_ids()
    mask = EVERYWHERE.clone()
    mask[0, 4] = False
    found = SplicedForward(loaded(model, with_head=True), "blocks.1.hook_resid_post").loss(ids, LENGTHS, None, mask)
    total, count = by_hand(model(ids).logits, ids, LENGTHS, mask)
    assert found.count == count == 7 + 4
    assert found.total == pytest.approx(total, rel=1e-5)
    assert found.mean == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("family", CAUSAL)
def test_replacing_by_itself_changes_no_bit_at_any_hook(family: str) -> None:
    model = build(family)
    for name in [name for name in available(model) if not is_pattern(name)]:
        batch = SplicedForward(loaded(model, with_head=True), name).begin(token_ids(), LENGTHS, EVERYWHERE)
        assert batch.self_check() == 0.0, name


@pytest.mark.parametrize("family", CAUSAL)
def test_a_replaced_stream_is_what_the_later_blocks_see(family: str) -> None:
    """Replaced at its end, in its middle (by the sum), or at the start of the next block: the same loss, and the one
    that a plain hook on the whole model gives."""
    model, ids = build(family), token_ids()
    blocks = find_blocks(model)
    assert blocks is not None
    new = torch.randn((3, 9, 16), generator=torch.Generator().manual_seed(1))
    losses = {}
    for name in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"):
        batch = SplicedForward(loaded(model, with_head=True), name).begin(ids, LENGTHS, EVERYWHERE)
        losses[name] = batch.loss({name: new}).total
        assert batch.loss({name: new}).total == losses[name] != batch.clean.total
    assert len(set(losses.values())) == 1
    handle = blocks.layers[0].register_forward_hook(lambda *_: new)
    total, _ = by_hand(model(ids).logits, ids, LENGTHS, EVERYWHERE)
    handle.remove()
    assert losses["blocks.0.hook_resid_post"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("family", [name for name in CAUSAL if name != "neox_parallel"])
def test_a_replaced_middle_reaches_the_mlp_and_the_sum(family: str) -> None:
    """resid_mid = resid_pre + attn_out: replacing either so that the sum is the same gives the same loss."""
    model, ids = build(family), token_ids()
    middle, attention, start = (f"blocks.1.hook_{point}" for point in ("resid_mid", "attn_out", "resid_pre"))
    new = torch.randn((3, 9, 16), generator=torch.Generator().manual_seed(1))
    by_middle = SplicedForward(loaded(model, with_head=True), middle).begin(ids, LENGTHS, EVERYWHERE)
    by_branch = SplicedForward(loaded(model, with_head=True), attention, sources=[start]).begin(
        ids, LENGTHS, EVERYWHERE
    )
    found = by_middle.loss({middle: new}).total
    assert found == pytest.approx(by_branch.loss({attention: new - by_branch.activations[start]}).total, rel=1e-4)
    assert abs(found - by_middle.clean.total) > 1e-2


def test_a_transcoder_sees_its_source_and_several_points_go_together() -> None:
    model, ids = build("llama"), token_ids()
    source, target = "blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"
    forward = SplicedForward(loaded(model, with_head=True), target, sources=[source])
    mlp = model.model.layers[1].mlp
    clean = forward.loss(ids, LENGTHS, None, EVERYWHERE)
    same = forward.loss(ids, LENGTHS, lambda _, sources: mlp(sources[source]), EVERYWHERE)
    zero = forward.loss(ids, LENGTHS, lambda acts, _: torch.zeros_like(acts), EVERYWHERE)
    assert same == clean
    assert zero != clean
    names = ["blocks.0.hook_mlp_out", target]
    both = SplicedForward(loaded(model, with_head=True), names).begin(ids, LENGTHS, EVERYWHERE)
    assert both.self_check() == 0.0
    assert both.loss({target: torch.zeros(3, 9, 16)}) == zero
    assert both.loss({name: torch.zeros(3, 9, 16) for name in names}) != zero


def test_only_the_blocks_behind_the_hook_point_run_again() -> None:
    model = build("gemma2")
    name = "blocks.1.hook_mlp_out"
    batch = SplicedForward(loaded(model, with_head=True), name).begin(token_ids(), LENGTHS, EVERYWHERE)
    starts = count_starts(model)
    batch.loss({name: torch.zeros(3, 9, 16)})
    assert [starts[f"model.layers.{layer}.mlp"] for layer in range(LAYERS)] == [0, 1, 1]
    assert starts["lm_head"] == 1
    assert not any(module._forward_hooks for module in batch._forward._backbone.modules())


def test_rows_behind_a_context_change_nothing() -> None:
    name = "blocks.0.hook_resid_post"
    batch = SplicedForward(loaded(build("llama"), with_head=True), name).begin(token_ids(), LENGTHS, EVERYWHERE)
    new = torch.randn((3, 9, 16), generator=torch.Generator().manual_seed(1))
    other = new.clone()
    other[1, 5:] = 100.0
    other[2] = -3.0
    assert batch.loss({name: new}) == batch.loss({name: other})


def test_what_cannot_be_spliced_is_refused() -> None:
    with pytest.raises(ModelError, match="without its head"):
        SplicedForward(loaded(build("llama")), "blocks.0.hook_resid_post")
    with pytest.raises(ModelError, match="masked_lm"):
        SplicedForward(loaded(build("bert"), with_head=True, kind="masked_lm"), "blocks.0.hook_resid_post")
    with pytest.raises(ModelError, match="'module'"):
        SplicedForward(loaded(Doubler(), with_head=True, kind="module"), "module:linear:out")
    with pytest.raises(HookPointError, match="outside of the blocks"):
        SplicedForward(loaded(build("llama"), with_head=True), "module:model.embed_tokens:out")


def test_nothing_predicted_has_no_mean() -> None:
    forward = SplicedForward(loaded(build("llama"), with_head=True), "blocks.0.hook_resid_post")
    found = forward.loss(token_ids(), torch.ones(3, dtype=torch.int64), None, EVERYWHERE)
    assert (found.count, found.total) == (0, 0.0)
    assert found.mean != found.mean
