"""The curve of token collapse: softmax alone makes rows alike, steering by the first layer's values does not."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "token_collapse.py"


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.mark.parametrize("seed", range(3))
def test_softmax_collapses_and_a_proportional_term_keeps_rows_apart(example: SimpleNamespace, seed: int) -> None:
    softmax, proportional = (example.curve(example.CONTROLLERS[name], seed=seed) for name in ("softmax", "P .6"))
    assert softmax[0] == proportional[0]  # layer 0 is unaffected
    assert softmax[11] > 0.99
    assert max(proportional[11:]) < 0.3


def test_a_large_integral_blows_up(example: SimpleNamespace) -> None:
    small, large = (example.stack(example.CONTROLLERS[f"PID {one}"])[-1].norm() for one in (".5 .05 .05", ".8 .5 .05"))
    assert float(large) > 100 * float(small)
    assert example.shift(example.CONTROLLERS["PID .5 .05 .05"]) < 0.2
