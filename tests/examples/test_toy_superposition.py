"""The toy models of superposition: two features for two dimensions, a pentagon of five where they are sparse."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str) -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return SimpleNamespace(**runpy.run_path(str(EXAMPLES / f"{script}.py")))


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    return run("toy_superposition")


@pytest.mark.slow
def test_dense_features_have_a_dimension_each(example: SimpleNamespace) -> None:
    found = example.train(0.0)
    assert (found.num_stored == 2).sum() >= 5
    assert (found.dimensionality.sum(1) - 2).abs().max() < 0.02
    assert found.dimensionality[found.is_stored].mean() > 0.9


@pytest.mark.slow
def test_sparse_features_lie_as_a_pentagon(example: SimpleNamespace) -> None:
    found = example.train(0.99)
    is_pentagon = found.num_stored == 5
    assert is_pentagon.sum() >= 5
    assert (found.dimensionality[is_pentagon] - 0.4).abs().max() < 0.03
    assert (found.dimensionality.sum(1) - 2).abs().max() < 0.02
    planted = torch.tensor([-0.81] * 5 + [0.31] * 5)
    for start in is_pentagon.nonzero().squeeze(1).tolist():
        assert (found.cosines(start) - planted).abs().max() < 0.1


@pytest.mark.parametrize("script", ["toy_superposition", "eight_tokens"])
def test_the_plot_is_a_picture_of_the_same_bytes_each_time(script: str, tmp_path: Path) -> None:
    example = run(script)
    few = {"num_starts": 2} if script == "toy_superposition" else {"num_seeds": 2}
    found = {one: example.train(one, num_steps=2, **few) for one in (0.0, 0.5)}
    for name in ("plot.svg", "again.svg"):
        example.draw(found, tmp_path / name)
    picture = (tmp_path / "plot.svg").read_bytes()
    assert b"</svg>" in picture
    assert picture == (tmp_path / "again.svg").read_bytes()
