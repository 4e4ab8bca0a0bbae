"""How good answers are: detection and fuzzing as delphi has them, and the correlation of a simulation.

accuracy     mean of the shares of right answers among the true and among the others (balanced)
precision    true ones among those that were called so
recall       called so among the true ones, over all and by quantile of strength, 0 the strongest
f1           harmonic mean of both
failed       questions without an answer; they count nowhere else

correlation  Pearson, expected with true values over rows (Bills et al. 2023): on the strongest examples and as many
             at random (``top_and_random``), and on all rows of the scoring half (``random``)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.interpretation.examples import Example, Marked
from pipeline.interpretation.explanation import Judge
from pipeline.interpretation.windows import Windows

HEADLINE = ("accuracy", "precision", "recall", "f1")
"""Figures of a classification that are averaged over latents."""


def detection(judge: Judge, examples: Sequence[Example]) -> dict[str, Any]:
    """Is the latent on in these? JSON."""
    answers = judge.detect(examples)
    return classified([one.is_active for one in examples], answers, [one.quantile for one in examples])


def fuzzing(judge: Judge, marked: Sequence[Marked]) -> dict[str, Any]:
    """Are these marks right? JSON."""
    quantiles = [one.example.quantile if one.is_right else -1 for one in marked]
    return classified([one.is_right for one in marked], judge.fuzz(marked), quantiles)


def classified(truth: Sequence[bool], answers: Sequence[bool | None], quantiles: Sequence[int] = ()) -> dict[str, Any]:
    """The figures above; None where nothing was asked that they could be measured on."""
    pairs = [(true, bool(said)) for true, said in zip(truth, answers, strict=True) if said is not None]
    positive = [said for true, said in pairs if true]
    negative = [said for true, said in pairs if not true]
    hits, alarms = sum(positive), sum(negative)
    recall = hits / len(positive) if positive else None
    spared = 1 - alarms / len(negative) if negative else None
    precision = hits / (hits + alarms) if hits + alarms else 0.0
    figures: dict[str, Any] = {
        "accuracy": None if recall is None or spared is None else (recall + spared) / 2,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if recall else 0.0,
        "asked": len(truth),
        "failed": len(truth) - len(pairs),
    }
    if quantiles:
        figures["recall_by_quantile"] = _by_quantile(truth, answers, quantiles)
    return figures


def simulation(
    judge: Judge, windows: Windows, value_T: npt.NDArray[np.float32], *, number: int, generator: np.random.Generator
) -> dict[str, float | None] | None:
    """The correlations; None of a judge that gives no numbers. None in a place where either side is constant."""
    expected_T = judge.simulate(windows)
    if expected_T is None:
        return None
    peak_W = windows.greatest(value_T)
    top = np.argsort(-peak_W, kind="stable")[:number]
    chosen = np.union1d(top, generator.permutation(len(windows))[:number])
    kept_T = np.repeat(np.isin(np.arange(len(windows)), chosen), np.diff(windows.edges)) & windows.eligible
    return {
        "top_and_random": correlation(expected_T[kept_T], value_T[kept_T]),
        "random": correlation(expected_T[windows.eligible], value_T[windows.eligible]),
    }


def correlation(a_T: npt.NDArray[np.float32], b_T: npt.NDArray[np.float32]) -> float | None:
    """Pearson; None where either is constant, or empty."""
    if not len(a_T) or a_T.min() == a_T.max() or b_T.min() == b_T.max():
        return None
    a, b = (one.astype(np.float64) - one.mean(dtype=np.float64) for one in (a_T, b_T))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else None  # numbers so small that their squares vanish


def _by_quantile(truth: Sequence[bool], answers: Sequence[bool | None], quantiles: Sequence[int]) -> list[float | None]:
    found: list[list[bool]] = [[] for _ in range(max(quantiles, default=-1) + 1)]
    for true, said, quantile in zip(truth, answers, quantiles, strict=True):
        if true and said is not None:
            found[quantile].append(said)
    return [sum(said) / len(said) if said else None for said in found]
