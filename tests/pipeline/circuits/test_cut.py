"""Calibration, bisection and interpolation against what they must come to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.circuits.calibration import Calibration, accuracy, calibrate, task_loss
from pipeline.circuits.cut import Kept, Measured, cut, interpolated, ranked
from pipeline.circuits.job import geometric_mean, summary_of


def test_the_task_loss_is_the_cross_entropy_of_two_logits() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.7], [1.0, 4.0]])
    labels = torch.tensor([0, 0, 1])
    margins, signs = logits[:, 0] - logits[:, 1], torch.tensor([1.0, 1.0, -1.0])
    torch.testing.assert_close(task_loss(margins, signs), torch.nn.functional.cross_entropy(logits, labels))
    assert accuracy(margins, signs) == pytest.approx(2 / 3)


def test_calibration_finds_the_least_loss() -> None:
    generator = torch.Generator().manual_seed(2)
    signs = torch.tensor([1.0, -1.0]).repeat(300)
    margins = 0.1 * (signs * 2 + torch.randn(600, generator=generator)) + 3
    found = calibrate(margins, signs)
    best = float(task_loss(margins, signs, found))
    assert best < 0.1 < float(task_loss(margins, signs))
    # A logistic regression: no neighbour does better.
    for scale, shift in ((1.02, 0), (0.98, 0), (1, 0.05), (1, -0.05)):
        other = Calibration(found.scale * scale, found.shift + shift)
        assert float(task_loss(margins, signs, other)) > best - 1e-6


def test_calibration_does_not_turn_a_preference_around() -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(50)
    found = calibrate(-2 * signs, signs)
    assert found.scale > 0
    assert float(task_loss(-2 * signs, signs, found)) == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_margins_that_are_all_the_same_say_nothing(noise: float) -> None:
    """As of a network without nodes on prompts that end alike: no scale makes an answer of their rounding."""
    signs = torch.tensor([1.0, -1.0]).repeat(50)
    searched, held_out = (
        3.3 + noise * torch.randn(100, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    found = calibrate(searched, signs)
    assert found.scale == pytest.approx(1)
    assert float(task_loss(held_out, signs, found)) == pytest.approx(math.log(2), abs=1e-5)


def measured(loss: float) -> Measured:
    return Measured(loss, loss, 0.5, Calibration())


@given(st.integers(1, 40), st.data())
def test_bisection_ends_where_one_node_less_misses_the_target(number: int, data: st.DataObject) -> None:
    losses = data.draw(st.lists(st.floats(0, 1, width=16), min_size=number + 1, max_size=number + 1))
    guess = data.draw(st.integers(0, number))
    ranking = np.array(data.draw(st.permutations(range(number))))

    def measure(kept: Kept) -> Measured:
        count = int(kept.sum())
        assert set(np.flatnonzero(kept)) == set(ranking[:count])
        return measured(losses[count])

    found = cut(ranking, 0.3, measure, guess=guess)
    count = int(found.kept.sum())
    assert found.measured.loss == losses[count]
    if not found.reached:
        assert count == number
        assert losses[count] > 0.3
        assert found.fewer is None
    else:
        assert losses[count] <= 0.3
        assert found.fewer is None if count == 0 else losses[count - 1] > 0.3


def test_edges_are_interpolated_at_the_target() -> None:
    losses = [1.0, 0.8, 0.3, 0.1, 0.05]
    found = cut(np.arange(4), 0.2, lambda kept: measured(losses[int(kept.sum())]), guess=0)
    assert int(found.kept.sum()) == 3
    # Half way between a loss of 0.3 with two nodes and one of 0.1 with three.
    assert interpolated(found, 0.2, lambda kept: 10 * int(kept.sum())) == pytest.approx(25)


def test_ranks_are_by_value_and_then_by_number() -> None:
    assert ranked(torch.tensor([0.1, 1.0, -1.0, 1.0])).tolist() == [1, 3, 0, 2]


def test_failed_tasks_are_named_beside_the_mean() -> None:
    assert geometric_mean([4, 9]) == pytest.approx(6)
    assert geometric_mean([]) is None
    one = {"status": "found", "nodes": 2, "edges_at_target": 16.0}
    summary = summary_of(
        {
            "a": one, "b": {"status": "missed"}, "c": {"status": "refused", "reason": "no"},
            "d": {**one, "edges_at_target": 4.0, "attribution": {"status": "found", "edges_at_target": 100.0}},
            "nonsense": {**one, "edges_at_target": 1.0},
        }
    )  # fmt: skip
    assert summary["edges_geometric_mean"] == pytest.approx(8)
    assert summary["attribution_edges_geometric_mean"] == pytest.approx(100)
    assert (summary["missed"], summary["refused"], summary["nonsense"]) == (["b"], ["c"], "found")
