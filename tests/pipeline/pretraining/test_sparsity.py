"""Weight sparsity: which weights stay, over a run, by property tests; rates and gradients by arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from pipeline.networks import build_network
from pipeline.pretraining.sparsity import WeightSparsity, keep_largest
from schemas.network import NetworkSpec
from schemas.weight_sparsity import WeightSparsitySpec

NETWORK = NetworkSpec(layers=2, d_model=16, heads=4, context_length=8, positions="learned", bigram_table=True)
VOCAB = 11

# A few values, so that equal magnitudes are common.
WEIGHTS = st.tuples(st.integers(1, 9), st.integers(1, 12)).flatmap(
    lambda shape: st.lists(st.integers(-6, 6), min_size=math.prod(shape), max_size=math.prod(shape)).map(
        lambda values: torch.tensor(values, dtype=torch.float32).view(shape) / 4
    )
)


def network() -> torch.nn.Module:
    return build_network(NETWORK, VOCAB, seed=0)


@settings(deadline=None, max_examples=100)
@given(WEIGHTS, st.floats(0.01, 1), st.integers(0, 5), st.sampled_from([None, 0, 1]))
def test_what_stays(weights: Tensor, share: float, survivors: int, axis: int | None) -> None:
    before = weights.clone()
    shifted = weights + weights.sign() * 1e-3 + 1e-4  # none is 0, so that what was kept can be told
    found = shifted.clone()
    keep_largest(found, share, survivors, axis)
    kept = found != 0
    count = max(int(share * weights.numel()), 1)
    assert int(kept.sum()) == count
    assert torch.equal(found[kept], shifted[kept])
    owed = torch.zeros_like(kept)
    if axis is not None:
        by_neuron = kept.movedim(axis, 0)
        promised = min(survivors, count // len(by_neuron), by_neuron.shape[1])
        assert int(by_neuron.sum(1).min()) >= promised
        for neuron, row in zip(owed.movedim(axis, 0), shifted.movedim(axis, 0), strict=True):
            order = sorted(range(len(row)), key=lambda index, row=row: (-abs(float(row[index])), index))
            neuron[order[:promised]] = True
        assert bool((kept | ~owed).all())
    free = kept & ~owed
    if bool(free.any()) and not bool(kept.all()):
        # Of those that nobody is owed, none that stays is smaller than one that goes; of equals the first ones stay.
        flat = shifted.abs().flatten().tolist()
        rest = [index for index in range(len(flat)) if not owed.flatten()[index]]
        order = sorted(rest, key=lambda index: (-flat[index], index))
        assert set(free.flatten().nonzero().squeeze(1).tolist()) == set(order[: int(free.sum())])
    keep_largest(weights, share, survivors, axis)  # with zeros among them
    assert int((weights != 0).sum()) <= count
    assert torch.equal(weights[weights != 0], before[weights != 0])


def test_equal_magnitudes_stay_by_index() -> None:
    weights = torch.tensor([[1.0, -1.0, 1.0], [1.0, -1.0, 1.0]])
    keep_largest(weights, 4 / 6, 0, 0)
    assert weights.tolist() == [[1.0, -1.0, 1.0], [1.0, 0.0, 0.0]]
    weights = torch.tensor([[1.0, -1.0, 1.0], [1.0, -1.0, 1.0]])
    keep_largest(weights, 4 / 6, 2, 0)
    assert weights.tolist() == [[1.0, -1.0, 0.0], [1.0, -1.0, 0.0]]


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_each_tensor_of_a_network_is_cut_as_its_preset_says(preset: str) -> None:
    spec = WeightSparsitySpec.model_validate({"preset": preset, "fraction": 1 / 16, "survivors": 1})
    whole = network()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.01)
    sparsity = WeightSparsity(spec, whole, total_steps=4)
    untouched = {name: parameter.detach().clone() for name, parameter in whole.named_parameters()}
    sparsity.project(3)
    for name, parameter in whole.named_parameters():
        module, kind = name.split(".")[-2:]
        kept, size = int((parameter != 0).sum()), parameter.numel()
        if module in ("ln_1", "ln_2", "ln_f", "bigram"):
            assert torch.equal(parameter, untouched[name]), name
        elif kind == "bias":
            assert kept == (size if preset == "released" else size // 16), name
        elif module in ("embed", "lm_head"):
            assert kept == (size // 4 if preset == "released" else size // 16), name
        elif module == "positions":
            assert kept == (0 if preset == "released" else size // 16)
        else:
            assert kept == size // 16, name
            neurons = (parameter != 0).sum(1 if module in ("q_proj", "k_proj", "v_proj", "up_proj") else 0)
            assert len(neurons) == (64 if module in ("up_proj", "down_proj") else 16)
            assert int(neurons.min()) >= 1, name
    counts = sparsity.counts()
    sizes = {"weights": 2 * (4 * 256 + 2 * 1024), "embeddings": 2 * 176, "biases": 2 * (5 * 16 + 64), "positions": 128}
    assert {group: count.total for group, count in counts.items()} == sizes
    assert counts["weights"].nonzero == sizes["weights"] // 16


def test_tied_embeddings_are_cut_and_counted_once() -> None:
    whole = build_network(NETWORK.model_copy(update={"tied_embeddings": True}), VOCAB, seed=0)
    assert WeightSparsity(WeightSparsitySpec(), whole, 1).counts()["embeddings"].total == VOCAB * 16


def test_what_was_cut_can_come_back() -> None:
    whole = network()
    sparsity = WeightSparsity(WeightSparsitySpec(fraction=1 / 16, anneal_stop=0.0, survivors=0), whole, 10)
    optimiser = torch.optim.AdamW(whole.parameters(), lr=0.05, eps=0.1, weight_decay=0.0)
    weight = whole.get_parameter("model.blocks.0.mlp.up_proj.weight")
    sparsity.project(0)
    gone = weight == 0
    ids = torch.randint(0, VOCAB, (8, 8), generator=torch.Generator().manual_seed(0))
    for step in range(1, 10):
        optimiser.zero_grad()
        logits = whole(ids).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
        assert weight.grad is not None
        assert bool((weight.grad[gone] != 0).any())
        optimiser.step()
        sparsity.project(step)
        assert int((weight != 0).sum()) == 64
    assert bool((weight[gone] != 0).any())


def test_the_share_falls_linearly_and_both_rates_follow_it() -> None:
    spec = WeightSparsitySpec(fraction=1 / 64)
    assert [spec.share(at) for at in (0.0, 0.25, 0.5, 1.0)] == [1.0, (1 + 1 / 64) / 2, 1 / 64, 1 / 64]
    assert WeightSparsitySpec(anneal_start=0.5, anneal_stop=0.5).share(0.49) == 1.0
    late = WeightSparsitySpec(preset="released")
    assert late.share(0.01) == 1.0
    assert late.share(0.255) == pytest.approx((1 + 1 / 64) / 2)
    # Over a run of 100 steps, behind steps 0 to 99.
    root = WeightSparsity(spec, network(), 100)
    assert [root.share(step) for step in (24, 49, 99)] == [spec.share(at) for at in (0.25, 0.5, 1.0)]
    assert root.learning_rate_factor(49) == pytest.approx(8.0)
    assert root.learning_rate_factor(24) == pytest.approx(1 / math.sqrt((1 + 1 / 64) / 2))
    relative = WeightSparsity(late, network(), 100)
    assert relative.learning_rate_factor(0) == pytest.approx(1 / 8)
    assert relative.learning_rate_factor(99) == pytest.approx(1.0)
    none = WeightSparsity(WeightSparsitySpec(learning_rate="none"), network(), 100)
    assert {none.learning_rate_factor(step) for step in range(100)} == {1.0}


@pytest.mark.parametrize("scale", [0.1, 30.0])
@pytest.mark.parametrize("how", ["clip", "normalise", "none"])
def test_the_gradient_is_scaled_by_its_root_mean_square(how: str, scale: float) -> None:
    whole = network()
    source = torch.Generator().manual_seed(1)
    for name, parameter in whole.named_parameters():
        if "bigram" not in name:  # counts as zeros
            parameter.grad = torch.randn(parameter.shape, generator=source) * scale
    before = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in whole.parameters()])
    expected = float(before.double().square().mean().sqrt())
    spec = WeightSparsitySpec.model_validate({"gradient": how, "gradient_rms": 2.0})
    assert WeightSparsity(spec, whole, 1).scale_gradients() == pytest.approx(expected, rel=1e-5)
    after = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in whole.parameters()])
    factor = {"clip": min(1.0, 2.0 / expected), "normalise": 2.0 / (expected + 1e-5), "none": 1.0}[how]
    torch.testing.assert_close(after, before * factor)
    assert (factor == 1.0) == (how == "none" or (how == "clip" and scale < 1))


def test_decay_by_hand_comes_behind_the_cut_and_spares_vectors_and_the_bigram_table() -> None:
    for preset in ("paper", "released"):
        plain, decayed = network(), network()
        spec = WeightSparsitySpec.model_validate({"preset": preset})
        with torch.no_grad():
            for whole in (plain, decayed):
                for parameter in whole.parameters():
                    parameter.add_(0.01)
        WeightSparsity(spec, plain, 2).project(1)
        sparsity = WeightSparsity(spec, decayed, 2)
        sparsity.project(1, learning_rate=0.5, weight_decay=0.1)
        assert sparsity.decays_weights == (preset == "released")
        for (name, one), other in zip(plain.named_parameters(), decayed.parameters(), strict=True):
            shrinks = preset == "released" and one.ndim == 2 and "bigram" not in name
            torch.testing.assert_close(other, one * (0.95 if shrinks else 1.0), msg=name)


def test_equal_weights_are_cut_alike_and_a_resumed_run_goes_on() -> None:
    spec = WeightSparsitySpec(fraction=1 / 8)
    one, two = network(), network()
    first = WeightSparsity(spec, one, 10)
    for step in range(6):
        first.project(step)
    for step in range(3):
        WeightSparsity(spec, two, 10).project(step)
    resumed = WeightSparsity(spec, two, 10)  # nothing is kept but the weights and the number of the step
    for step in range(3, 6):
        resumed.project(step)
    assert all(map(torch.equal, one.parameters(), two.parameters()))


def test_given_fields_go_before_the_preset() -> None:
    spec = WeightSparsitySpec.model_validate({"preset": "released", "gradient": "clip"})
    assert (spec.gradient, spec.biases, spec.embedding_fraction) == ("clip", "dense", 1 / 16)
    assert WeightSparsitySpec.model_validate(spec.model_dump(mode="json")) == spec
    paper = WeightSparsitySpec()
    assert (paper.gradient, paper.biases, paper.embedding_fraction) == ("clip", "sparse", 1 / 64)
    with pytest.raises(ValidationError, match="is before anneal_start"):
        WeightSparsitySpec(anneal_start=0.6)
