"""P-annealing: f^p and its slope, and lambda that keeps the penalty what it was when p changes."""

from __future__ import annotations

import pytest
import torch
from stepping import autograd_of, build, measure, rows

from pipeline.training.kernels import TorchKernels
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import SingleWorld

ACTIVATION = {"kind": "relu_p_anneal", "coefficient": 0.5, "anneal_start": 0.25, "anneal_steps": 2, "p_end": 0.5}


def test_it_starts_as_l1() -> None:
    dictionary = build(ACTIVATION)
    x, y = rows(dictionary)
    codes = ((x - dictionary.b_dec) @ dictionary.encoder.T + dictionary.b_enc).relu()
    loss = ((codes @ dictionary.decoder + dictionary.b_dec - y).square().sum() + 0.5 * codes.sum()) / len(x)
    measured, gradients, totals = measure(dictionary, x, y)
    assert measured == pytest.approx(loss.item(), rel=1e-9)
    for name, grad in autograd_of(dictionary, loss).items():
        torch.testing.assert_close(gradients[name], grad, rtol=1e-8, atol=1e-10, msg=name)
    assert float(totals.power) == pytest.approx(float(codes.detach().sum()))
    assert float(totals.next_power) == pytest.approx(float(codes.detach().pow(0.75).sum()), rel=1e-3)


def test_p_falls_in_equal_changes_and_lambda_keeps_the_penalty() -> None:
    trainer = DictionaryTrainer(build(ACTIVATION), TorchKernels(), max_gradient_norm=1.0)
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = []
    for step in range(20):
        # Held still, so that nothing but p and lambda changes the penalty.
        trainer.step({"a": x}, num_rows=64, factor=0.0, progress=step / 20, world=SingleWorld())
        state = trainer.state()
        penalty = float(trainer._totals.penalty)
        seen.append((int(state["objective.p_changes"]), float(state["objective.p_factor"]), penalty))
    # Of the 15 steps after a quarter each of the three powers has a third.
    assert [changes for changes, _, _ in seen] == [0] * 10 + [1] * 5 + [2] * 5
    assert seen[-1][1] != 1.0
    full = [penalty for _, _, penalty in seen[2:]]
    assert full == pytest.approx([full[0]] * len(full), rel=1e-9)
    with torch.no_grad():
        codes = trainer.dictionary.codes_dense(x)
    by_hand = 0.5 * seen[-1][1] * float(codes[codes > 0].pow(0.5).sum())
    assert full[-1] == pytest.approx(by_hand, rel=1e-3)
