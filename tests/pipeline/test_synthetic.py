"""The generators against what they say of themselves."""

from __future__ import annotations

import pytest
import torch

from pipeline.dictionaries.similarity import mmcs
from pipeline.synthetic import EIGHT_TOKENS, PlantedDifference, Superposition, eight_tokens


def test_the_table() -> None:
    table = eight_tokens()
    assert table.shape == (8, 4)
    assert table[list(EIGHT_TOKENS).index("robot")].tolist() == pytest.approx([0.0, 0.7, 0.9, 0.8])


def test_features_are_unit_and_rows_are_sums_of_them() -> None:
    data = Superposition(num_features=6, width=8, num_active=1.5, seed=3)
    assert data.features.norm(dim=1).tolist() == pytest.approx([1.0] * 6, abs=1e-6)
    codes = torch.linalg.lstsq(data.features.T, data.sample(20_000).T).solution.T
    on = codes > 1e-4
    assert codes.min() > -1e-4
    assert codes.max() < 1.0001
    assert on.double().mean(0).tolist() == pytest.approx(data.probabilities.tolist(), abs=0.015)
    assert codes[on].mean() == pytest.approx(0.5, abs=0.01)


def test_frequencies_fall_and_add_up() -> None:
    data = Superposition()
    assert data.features.shape == (512, 128)
    assert float(data.probabilities.sum()) == pytest.approx(5.0, rel=1e-5)
    assert float(data.probabilities[100] / data.probabilities[99]) == pytest.approx(0.99, rel=1e-5)


def test_a_seed_is_a_stream() -> None:
    one, same, other = Superposition(seed=1), Superposition(seed=1), Superposition(seed=2)
    first = one.sample(4)
    assert torch.equal(first, same.sample(4))
    assert not torch.equal(first, one.sample(4))
    assert not torch.equal(one.features, other.features)


def test_plain_draws_of_the_seed_are_not_the_features() -> None:
    """A dictionary that starts from the same seed must not know the answer."""
    start = torch.randn((1024, 128), generator=torch.Generator().manual_seed(0))
    assert mmcs(Superposition(seed=0).features, start) < 0.35


def test_two_models_differ_as_planted() -> None:
    data = PlantedDifference(num_shared=3, num_own=2, num_lesser=2, lesser_scale=0.25, width=9, seed=2)
    assert data.kind == ["shared"] * 3 + ["first"] * 2 + ["second"] * 2 + ["lesser"] * 2
    norms = data.directions.norm(dim=2)
    assert norms[0].tolist() == pytest.approx([1, 1, 1, 1, 1, 0, 0, 1, 1], abs=1e-6)
    assert norms[1].tolist() == pytest.approx([1, 1, 1, 0, 0, 1, 1, 0.25, 0.25], abs=1e-6)
    assert torch.equal(data.directions[0, :3], data.directions[1, :3])
    torch.testing.assert_close(data.directions[0, 7:] * 0.25, data.directions[1, 7:])
    rows = data.sample(20_000)
    # The same events in both: what is left of the first after its own features is the second's less its own.
    both = torch.cat([data.directions[0], data.directions[1]], dim=1)
    codes = torch.linalg.lstsq(both.T, torch.cat([rows["first"], rows["second"]], dim=1).T).solution.T
    assert (codes > 0.1).double().mean(0).tolist() == pytest.approx([0.03] * 9, abs=0.006)
    assert codes[codes > 0.1].min() > 0.49
    assert codes.max() < 1.51
