"""The exercises by hand against whole-number arithmetic that uses no part of the example but its figures."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "by_hand.py"


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_autoencoder_forward(example: SimpleNamespace) -> None:
    run = example.autoencode()
    assert [layer.tolist() for layer in run.layers] == [
        [[4, 2, 0, 1], [1, 0, 3, 2], [3, 4, 1, 3]],
        [[4, 3, 0, 0], [4, 4, 4, 5]],
        [[4, 3, 0, 0], [1, 2, 5, 6], [2, 2, 2, 3]],
        [[1, 2, 5, 6], [4, 3, 0, 0], [2, 2, 2, 3], [4, 2, 0, 0]],
    ]
    assert run.loss == 59
    assert run.output_gradient.tolist() == [[0, 0, 10, 6], [4, 6, -2, -2], [4, 2, -2, 2], [2, 2, -2, 0]]


def test_autoencoder_gradients(example: SimpleNamespace) -> None:
    """Back-propagation in int64, layer by layer from the end."""
    inputs = np.array(example.SAMPLES)
    layers = [(np.array(weights), np.array(bias)[:, None]) for weights, bias in example.AUTOENCODER]
    values = [inputs]
    for weights, bias in layers:
        values.append(np.maximum(weights @ values[-1] + bias, 0))
    gradient, expected = 2 * (values[-1] - inputs), []
    for (weights, _), before, after in reversed(list(zip(layers, values, values[1:], strict=False))):
        gradient = gradient * (after > 0)
        expected.insert(0, gradient @ before.T)
        gradient = weights.T @ gradient
    run = example.autoencode()
    assert all(np.array_equal(got, want) for got, want in zip(run.weight_gradients, expected, strict=True))
    assert any(want.any() for want in expected)


def test_sparse_autoencoder_forward(example: SimpleNamespace) -> None:
    run = example.code_sparsely()
    assert run.codes.tolist() == [
        [0, 1, 0, 0, 2],
        [0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 2],
        [0, 0, 2, 0, 0],
        [0, 1, 0, 0, 0],
    ]
    assert int((run.codes == 0).sum()) == 22
    assert run.reconstruction.tolist() == [[0, 6, 0, 0, 8], [1, 8, 2, 1, 13], [0, 3, 9, -1, 3]]
    assert run.decoder_norms.tolist() == [5, 1, 1, 3, 5, 3]
    assert run.l1 == 11


def test_the_penalty_is_on_the_codes(example: SimpleNamespace) -> None:
    """Its derivative is +1 where a latent is active; the -1 often drawn is the direction of descent."""
    run = example.code_sparsely()
    assert np.array_equal(run.l1_gradient, run.codes > 0)
    assert np.array_equal(run.error_gradient, 2 * (run.reconstruction.numpy() - np.array(example.TOKENS)))


@pytest.mark.parametrize("step_size", [0.0, 1e-6, 1 / 64, 1.0, 100.0])
def test_a_step_on_the_penalty_never_raises_it(example: SimpleNamespace, step_size: float) -> None:
    before, after = example.code_sparsely(step_size).weighted_l1
    assert before == 39
    assert after <= before


def test_it_runs_and_prints(example: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    example.main()
    shown = capsys.readouterr().out
    assert "L = 59" in shown
    assert "zeros in F: 22 of 30; L1 = 11" in shown
