"""When training a dictionary has gone wrong, decided by figures of the global batch, so alike on all ranks.

A dictionary has diverged when a figure of a step is not finite, or when its squared error explodes:

    median of the last W FVUs > multiple * max(lowest such median so far, 1)

The error and not the whole loss: penalties are ramped up, and may take a loss of a healthy run far above where it
began. No healthy dictionary gets much worse than one that predicts the mean, FVU 1, once it was better. A median is
deaf to single bad batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from schemas.train import DivergenceCheck

_LOWEST, _STEP, _KEPT, _FIGURE, _REFERENCE, _GRAD_NORM, _LIMIT, _LAST, _NUM = range(9)


@dataclass(frozen=True)
class Verdict:
    """Why a dictionary was stopped."""

    step: int
    """The step that it was found in; the first is 1."""
    figure: float
    """Median of the last FVUs, or a loss where that or the gradient was not finite."""
    reference: float
    """What the median was compared with; NaN where a loss or gradient was not finite."""
    grad_norm: float
    """Of the last step, in the latter case."""
    kept_step: int = 0
    """Steps of the last good checkpoint, which the weights were set back to; 0: there was none."""

    def reason(self, check: DivergenceCheck) -> str:
        """For people."""
        if math.isnan(self.reference):
            return f"loss {self.figure:g} and gradient norm {self.grad_norm:g} must be finite"
        return (
            f"the median FVU of the last {check.window_steps} steps is {self.figure:.4g}, more than "
            f"{check.fvu_multiple:g} times {self.reference:.4g} (divergence.fvu_multiple)"
        )

    def facts(self, check: DivergenceCheck) -> dict[str, Any]:
        """For the summary."""
        return {"step": self.step, "kept_step": self.kept_step, "reason": self.reason(check)}


class DivergenceWatch:
    """Looks at the figures of one dictionary; all that it knows is in ``state``."""

    def __init__(self, check: DivergenceCheck, device: torch.device) -> None:
        self._check = check
        self._fvus = torch.zeros(check.window_steps, dtype=torch.float64, device=device)
        self._figures = torch.full((_NUM,), math.inf, dtype=torch.float64, device=device)
        self._figures[[_STEP, _KEPT]] = -1.0

    def observe(self, fvu: float, num_steps: int) -> None:
        """Take the FVU of the step after ``num_steps`` steps."""
        window = len(self._fvus)
        self._fvus[num_steps % window] = fvu
        median = float(self._fvus[: num_steps + 1].median())
        reference = max(float(self._figures[_LOWEST]), 1.0)
        limit = self._check.fvu_multiple * reference if self._check.fvu_multiple else math.inf
        if num_steps + 1 >= window and median > limit:
            self._found(num_steps + 1, median, reference)
        self._figures[_LIMIT], self._figures[_LAST] = limit, fvu
        self._figures[_LOWEST] = min(float(self._figures[_LOWEST]), median)

    def note_not_finite(self, loss: float, grad_norm: float, num_steps: int) -> None:
        """The step after ``num_steps`` steps has such a figure."""
        self._found(num_steps + 1, loss, math.nan, grad_norm)

    def _found(self, step: int, figure: float, reference: float, grad_norm: float = math.nan) -> None:
        self._figures[_STEP], self._figures[_FIGURE], self._figures[_REFERENCE] = step, figure, reference
        self._figures[_GRAD_NORM] = grad_norm

    @property
    def verdict(self) -> Verdict | None:
        """None: all is well."""
        figures = self._figures.tolist()
        if figures[_STEP] < 0:
            return None
        return Verdict(
            int(figures[_STEP]), figures[_FIGURE], figures[_REFERENCE], figures[_GRAD_NORM], max(0, int(figures[_KEPT]))
        )

    @property
    def is_suspect(self) -> bool:
        """The last FVU would be too high for a median: what is kept now may not be worth going back to."""
        return bool(self._figures[_LAST] > self._figures[_LIMIT])

    def settle(self, verdict: Verdict, kept_step: int) -> None:
        """The verdict, which going back to a checkpoint has overwritten, and what was gone back to."""
        self._found(verdict.step, verdict.figure, verdict.reference, verdict.grad_norm)
        self._figures[_KEPT] = kept_step

    def state(self) -> dict[str, torch.Tensor]:
        """Live tensors."""
        return {"fvus": self._fvus, "figures": self._figures}
