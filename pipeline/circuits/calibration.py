"""Task loss: cross-entropy between the two answers, before and after the logits are scaled and shifted.

Letters: N prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LBFGS_STEPS = 16
_SAME = 1e-5
"""Margins whose deviation is below this share of their greatest magnitude differ by rounding alone."""


@dataclass(frozen=True)
class Calibration:
    """Of the margin between two logits: scale * margin + shift."""

    scale: float = 1.0
    shift: float = 0.0


def task_loss(margins: Tensor, signs: Tensor, calibration: Calibration | None = None) -> Tensor:
    """Mean cross-entropy in nats over the softmax of the two answers.

    ``margins`` [N]: the first answer's logit less the second's; ``signs`` [N]: 1 where the first is right, else -1.
    """
    if calibration is not None:
        margins = calibration.scale * margins + calibration.shift
    return functional.softplus(-signs * margins).mean()


def accuracy(margins: Tensor, signs: Tensor) -> float:
    """Share of prompts whose right answer has the greater logit."""
    return float((margins * signs > 0).float().mean())


def calibrate(margins: Tensor, signs: Tensor) -> Calibration:
    """Scale and shift of least loss, by 16 steps of LBFGS. The scale stays above 0, so that a network that prefers the
    wrong answers is not turned around. Margins that are all the same are shifted only: what scale would make of their
    rounding says nothing."""
    margins, signs = margins.detach().double(), signs.double()
    # Of margins with mean 0 and deviation 1, for which 16 steps are plenty; the result is that of the margins as given.
    mean, deviation = margins.mean(), margins.std(correction=0)
    if deviation <= _SAME * margins.abs().max():
        margins, deviation = mean.expand_as(margins), torch.ones_like(deviation)
    standard = (margins - mean) / deviation
    found = torch.zeros(2, dtype=torch.float64, device=margins.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([found], max_iter=LBFGS_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = functional.softplus(-signs * (found[0].exp() * standard + found[1])).mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    log_scale, shift = found.detach().tolist()
    scale = math.exp(log_scale) / float(deviation)
    return Calibration(scale, shift - scale * float(mean))
