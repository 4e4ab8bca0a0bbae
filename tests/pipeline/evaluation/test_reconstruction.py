from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.reconstruction import Firings, Reconstruction, ReconstructionSums, density_histogram
from schemas.errors import DivergenceError, IncompleteError

# Three rows, two channels, a dictionary of three latents; every figure below is worked out by hand.
ACTUAL = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 8.0]])
PREDICTED = torch.tensor([[1.0, 1.0], [3.0, 4.0], [4.0, 8.0]])
CODES = torch.tensor([[0.5, 0.0, 0.0], [2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
HAND_ERROR = (0 + 1) + (0 + 4) + (1 + 0)
HAND_VARIANCE = (4 + 4) + (0 + 4) + (4 + 16)  # mean (3, 4)


def figures_of(*batches: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Reconstruction:
    sums = ReconstructionSums("d", 3, {"h": 2})
    for actual, predicted, codes in batches:
        sums.add({"h": actual}, {"h": predicted}, Firings.from_dense(codes))
    return sums.figures()


def test_figures_by_hand() -> None:
    figures = figures_of((ACTUAL, PREDICTED, CODES))
    assert figures.fvu == pytest.approx(HAND_ERROR / HAND_VARIANCE, rel=1e-12)
    assert figures.fvu_of_target == {"h": pytest.approx(6 / 32, rel=1e-12)}
    assert figures.l0 == pytest.approx(3 / 3)
    assert figures.dead_share == pytest.approx(1 / 3)
    assert figures.num_rows == 3
    assert figures.fired.tolist() == [2, 0, 1]
    assert figures.density.tolist() == pytest.approx([2 / 3, 0, 1 / 3])
    assert figures.peak.tolist() == [2.0, 0.0, 1.0]
    assert figures.total.tolist() == [2.5, 0.0, 1.0]
    assert figures.mean_of_target["h"].tolist() == pytest.approx([3.0, 4.0])


def test_the_mean_is_that_of_the_whole_set_not_of_a_batch() -> None:
    whole = figures_of((ACTUAL, PREDICTED, CODES))
    cut = figures_of(*((ACTUAL[i : i + 1], PREDICTED[i : i + 1], CODES[i : i + 1]) for i in range(3)))
    assert cut.fvu == pytest.approx(whole.fvu, rel=1e-12)
    assert cut.fired.tolist() == whole.fired.tolist()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 7), min_size=1, max_size=6), st.floats(-1e4, 1e4))
def test_streaming_equals_two_passes(seed: int, sizes: list[int], offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = sum(sizes) + 1
    actual = torch.randn(rows, 4, generator=generator, dtype=torch.float64) + offset
    predicted = actual + 0.1 * torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    expected = float((actual - predicted).square().sum() / (actual - actual.mean(0)).square().sum())
    sums = ReconstructionSums("d", 1, {"a": 1, "b": 3})
    nothing = Firings.from_dense(torch.zeros(1, 1))
    for a, p in zip(actual.split([*sizes, 1]), predicted.split([*sizes, 1]), strict=True):
        sums.add({"a": a[:, :1], "b": a[:, 1:]}, {"a": p[:, :1], "b": p[:, 1:]}, nothing)
    assert sums.figures().fvu == pytest.approx(expected, rel=1e-7)


def test_perfect_and_mean_predictions_are_0_and_1() -> None:
    assert figures_of((ACTUAL, ACTUAL, CODES)).fvu == 0
    assert figures_of((ACTUAL, ACTUAL.mean(0).expand(3, 2), CODES)).fvu == pytest.approx(1, rel=1e-12)


def test_targets_of_different_width_and_scale_are_weighted_by_their_variance() -> None:
    sums = ReconstructionSums("d", 3, {"h": 2, "g": 2})
    sums.add({"h": ACTUAL, "g": 10 * ACTUAL}, {"h": PREDICTED, "g": 10 * ACTUAL}, Firings.from_dense(CODES))
    figures = sums.figures()
    assert figures.fvu_of_target == {"h": pytest.approx(6 / 32), "g": 0}
    assert figures.fvu == pytest.approx(6 / (32 + 3200))


def test_sparse_and_dense_codes_fire_alike() -> None:
    dense = Firings.from_dense(CODES)
    # A slot of value 0 is not active, whatever its index says.
    sparse = Firings.from_sparse(
        torch.tensor([[0.5, 0.0], [2.0, 1.0], [0.0, 0.0]]), torch.tensor([[0, 1], [0, 2], [1, 2]])
    )
    for field in ("row", "latent", "value"):
        assert getattr(sparse, field).tolist() == getattr(dense, field).tolist()


@pytest.mark.parametrize("whose", ["the store's activations", "the dictionary's predictions"])
def test_numbers_that_are_not_finite_are_refused_by_row(whose: str) -> None:
    bad = ACTUAL.clone()
    bad[2, 1] = float("nan")
    actual, predicted = (bad, PREDICTED) if whose.startswith("the store") else (ACTUAL, bad)
    with pytest.raises(DivergenceError, match=rf"'d': {whose} at h are not finite \(first in row 2"):
        figures_of((actual, predicted, CODES))


def test_no_rows_and_constant_rows_have_no_figures() -> None:
    with pytest.raises(IncompleteError, match="no rows to evaluate"):
        figures_of()
    with pytest.raises(DivergenceError, match="h is constant over the 3 rows"):
        figures_of((torch.ones(3, 2), PREDICTED, CODES))


def test_histogram_counts_every_latent_that_fired_once() -> None:
    density = np.array([0, 1, 0.5, 0.01, 0.001, 1e-4])
    edges, counts = density_histogram(density, 10_000)
    assert edges[0] == -4
    assert edges[-1] == 0
    assert len(edges) == len(counts) + 1 == 21
    assert sum(counts) == 5
    assert counts[0] == 1
    assert counts[-1] == 1
    assert counts[edges.index(-2.0)] == 1
