"""The eight-token autoencoder over many starts: a single start may find anything, so only shares are asserted."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples" / "eight_tokens.py"
ALL = ("animals", "machines", "not animals")


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.mark.slow
def test_sparsity_separates_the_concepts(example: SimpleNamespace) -> None:
    dense, sparse = (example.train(sparsity, num_seeds=100) for sparsity in (0.0, 0.1))
    assert sparse.rate(*ALL) > 0.25
    assert sparse.rate(*ALL) > dense.rate(*ALL) + 0.1
    assert sparse.l0.median() < dense.l0.median() / 2
    assert sparse.mse.median() < 2e-3


def test_too_much_sparsity_kills_latents(example: SimpleNamespace) -> None:
    assert example.train(1.0, num_seeds=20).num_alive.median() <= 4


def test_starts_trained_together_are_independent(example: SimpleNamespace) -> None:
    few, many = (example.train(0.1, num_seeds=count, num_steps=50) for count in (2, 5))
    torch.testing.assert_close(few.mse, many.mse[:2], rtol=1e-5, atol=0)


def test_a_concept_needs_exactly_its_tokens(example: SimpleNamespace) -> None:
    codes = torch.zeros(2, 8, 3)
    codes[0, :4, 0] = 1.0
    codes[0, 6:, 1] = torch.tensor([1.0, 0.04])
    codes[1, 6:, 2] = 0.2
    found = example.examine(codes, torch.zeros(2)).found
    assert found["animals"].tolist() == [True, False]
    assert found["machines"].tolist() == [False, True]
    assert found["not animals"].tolist() == [False, False]
