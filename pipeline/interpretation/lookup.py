"""Judging by a table of tokens: one score for each token of the vocabulary, looked up at a row or at the one after it.

    detection    the greatest score in a window is above a threshold
    fuzzing      the mean score of the marked tokens is above a threshold
    simulation   a second table gives the value expected at each row

Both thresholds are those that tell best, in balanced accuracy, on windows of the explaining half.

V vocabulary, T rows, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.interpretation.examples import Example, Marked
from pipeline.interpretation.windows import Windows

Floats = npt.NDArray[np.float32]
NEVER = np.float32(-np.inf)
"""Score where there is nothing to look up."""


@dataclass(frozen=True)
class LookupJudge:
    """See above."""

    scores: Floats
    """[V]."""
    expected: Floats
    """[V], value expected where the token is."""
    offset: int
    """0: the token itself is looked up; 1: the next one, so the last row of a window has nothing."""
    window_threshold: float
    token_threshold: float

    def detect(self, examples: Sequence[Example]) -> list[bool | None]:
        """By the greatest score of the rows that the dictionary is applied to."""
        return [
            bool(looked_up(self.scores, one.token_id, one.eligible, self.offset).max() > self.window_threshold)
            for one in examples
        ]

    def fuzz(self, marked: Sequence[Marked]) -> list[bool | None]:
        """By the mean score of the marked rows; wrong where none of them has a score."""
        answers: list[bool | None] = []
        for one in marked:
            found = looked_up(self.scores, one.example.token_id, one.example.eligible, self.offset)[one.marks]
            known = found[found > NEVER]
            answers.append(bool(len(known) and known.mean() > self.token_threshold))
        return answers

    def simulate(self, windows: Windows) -> Floats:
        """[T]."""
        found = windows_scores(self.expected, windows, self.offset)
        return np.where(found > NEVER, found, np.float32(0))


def fitted(scores: Floats, expected: Floats, windows: Windows, value_T: Floats, *, offset: int) -> LookupJudge:
    """A judge with the thresholds that tell best on these windows."""
    score_T = windows_scores(scores, windows, offset)
    known = score_T > NEVER
    return LookupJudge(
        scores,
        expected,
        offset,
        window_threshold=best_threshold(windows.greatest(score_T), windows.greatest(value_T) > 0),
        token_threshold=best_threshold(score_T[known], value_T[known] > 0),
    )


def looked_up(scores: Floats, token_id: npt.NDArray[np.int32], eligible: npt.NDArray[np.bool_], offset: int) -> Floats:
    """Score of each row of one window, ``NEVER`` where there is none."""
    found = np.full(len(token_id), NEVER, dtype=np.float32)
    stop = len(token_id) - offset
    found[:stop] = scores[token_id[offset:]]
    return np.where(eligible, found, NEVER)


def windows_scores(scores: Floats, windows: Windows, offset: int) -> Floats:
    """The same for all rows of many windows, [T]."""
    found = looked_up(scores, windows.token_id, windows.eligible, offset)
    if offset:
        found[windows.edges[1:] - 1] = NEVER  # what comes next there belongs to another window
    return found


def best_threshold(scores: npt.NDArray[np.floating], truth: npt.NDArray[np.bool_]) -> float:
    """The threshold, half way between two scores, above which the mean of the hit rates of both classes is greatest;
    the lowest of several. With one class only: below all if that is the true one, else above all."""
    order = np.argsort(scores, kind="stable")
    ranked, is_true = scores[order].astype(np.float64), truth[order]
    num_true, num_false = int(is_true.sum()), int((~is_true).sum())
    if not num_true or not num_false:
        return float(-np.inf if num_true else np.inf)
    # A cut after place i calls all later ones true.
    missed, spared = np.cumsum(is_true) / num_true, np.cumsum(~is_true) / num_false
    gain = np.where(np.diff(ranked, append=np.inf) > 0, spared - missed, -np.inf)[:-1]
    if not len(gain) or gain.max() <= 0:
        return -np.inf
    place = int(np.argmax(gain))
    if not np.isfinite(ranked[place]):
        return float(np.nextafter(ranked[place + 1], -np.inf))
    return float((ranked[place] + ranked[place + 1]) / 2)
