"""The decoder-norm weighted L1 loss against a hand-computed example and its own invariance."""

from __future__ import annotations

import pytest
import torch

from pipeline.dictionaries import initialise
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.parameters import flat_gradients
from pipeline.training.relu_l1 import ReluL1Objective
from pipeline.training.totals import BatchTotals
from schemas.dictionary import DictionarySpec, ReluL1

F, D = 3, 2


def build(targets: list[str] | None = None, warmup: float = 0.0) -> tuple[Dictionary, ReluL1Objective]:
    activation = ReluL1(l1_coefficient=2.0, l1_warmup_fraction=warmup)
    spec = DictionarySpec(name="d", sources=["in"], targets=targets or [], num_latents=F, activation=activation)
    widths = dict.fromkeys(spec.target_points, D)
    dictionary = Dictionary(spec, {"in": D}, widths, dict.fromkeys(["in", *widths], 1.0))
    initialise.fill(dictionary, {point: torch.ones(D) for point in widths})
    flat_gradients(dictionary)
    return dictionary, ReluL1Objective(dictionary, activation)


def loss(
    dictionary: Dictionary, objective: ReluL1Objective, x: torch.Tensor, y: torch.Tensor, progress: float
) -> float:
    totals = BatchTotals(y.shape[1], F, torch.device("cpu"))
    objective.accumulate(x, y, torch.zeros(F, dtype=torch.bool), totals, progress)
    return objective.loss_sum(totals, progress) / objective.normaliser(totals, len(x))


def test_hand_computed_loss() -> None:
    dictionary, objective = build()
    with torch.no_grad():
        dictionary.encoder.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        dictionary.decoder.copy_(torch.tensor([[0.5, 0.0], [0.0, 2.0], [1.0, 1.0]]))
        dictionary.b_dec.copy_(torch.tensor([0.0, 1.0]))
    x = torch.tensor([[2.0, 1.0]])
    # f = (2, 1, 0); x^ = (1, 3); error = 1 + 4; penalty = 2 * 0.5 + 1 * 2
    assert loss(dictionary, objective, x, x, 1.0) == pytest.approx(5 + 2 * 3)


def test_penalty_sums_the_norms_of_the_targets() -> None:
    dictionary, objective = build(["in", "out"])
    x = torch.tensor([[1.0, 0.5], [-0.3, 2.0]])
    y = torch.cat([x, x.flip(0)], dim=1)
    codes = dictionary.codes_dense(x)
    norms = dictionary.decoder[:, :D].norm(dim=1) + dictionary.decoder[:, D:].norm(dim=1)
    expected = (codes @ dictionary.decoder + dictionary.b_dec - y).square().sum() + 2 * (codes * norms).sum()
    assert loss(dictionary, objective, x, y, 1.0) == pytest.approx(float(expected.detach()) / 2, rel=1e-5)


def test_loss_is_invariant_under_the_scale_of_a_latent() -> None:
    x = torch.randn(16, D, generator=torch.Generator().manual_seed(0))
    dictionary, objective = build()
    before = loss(dictionary, objective, x, x, 1.0)
    factor = torch.tensor([0.1, 3.0, 10.0])[:, None]
    with torch.no_grad():
        dictionary.encoder.mul_(factor)
        dictionary.b_enc.mul_(factor[:, 0])
        dictionary.decoder.div_(factor)
    assert loss(dictionary, objective, x, x, 1.0) == pytest.approx(before, rel=1e-5)


def test_penalty_rises_linearly() -> None:
    x = torch.ones(4, D)
    dictionary, objective = build(warmup=0.5)
    start, middle, end = (loss(dictionary, objective, x, x, progress) for progress in (0.0, 0.25, 0.5))
    assert middle - start == pytest.approx((end - start) / 2, rel=1e-5)
    assert loss(dictionary, objective, x, x, 1.0) == pytest.approx(end)


def test_start_is_that_of_the_april_2024_update() -> None:
    dictionary, _ = build()
    torch.testing.assert_close(dictionary.decoder.norm(dim=1), torch.full((F,), 0.1))
    torch.testing.assert_close(dictionary.encoder, dictionary.decoder)
    assert not dictionary.b_dec.any()
