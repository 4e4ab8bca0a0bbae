"""Examples of a latent: windows in which it is on, drawn evenly from all strengths, as many in which it is off, and
the marks of fuzzing (Paulo et al. 2024, arXiv 2410.13928, and its code, delphi).

L tokens of an example, T rows, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.interpretation.windows import Windows

MARKED = 0.3
"""A token is marked where the latent has at least this share of its greatest value in the example."""

SILENT = -1
"""Quantile of an example in which the latent is off."""


@dataclass(frozen=True)
class Example:
    """One window, and what the latent does in it."""

    token_id: npt.NDArray[np.int32]
    """[L]."""
    value: npt.NDArray[np.float32]
    """[L], zero where the latent is off."""
    eligible: npt.NDArray[np.bool_]
    """[L] rows that the dictionary is applied to."""
    quantile: int
    """Which part of the order by strength it is from, 0 the strongest; ``SILENT``."""

    @property
    def is_active(self) -> bool:
        """The latent is on somewhere in it."""
        return self.quantile != SILENT

    @property
    def strong(self) -> npt.NDArray[np.bool_]:
        """[L] tokens that a mark belongs on."""
        found: npt.NDArray[np.bool_] = (self.value > 0) & (self.value >= MARKED * self.value.max())
        return found


@dataclass(frozen=True)
class Marked:
    """An example with marks, right or wrong."""

    example: Example
    marks: npt.NDArray[np.bool_]
    """[L]."""
    is_right: bool


@dataclass(frozen=True)
class Evidence:
    """All that an explainer may look at: half of the windows and the latent's values there."""

    latent: int
    windows: Windows
    value: npt.NDArray[np.float32]
    """[T]."""
    activating: Sequence[Example] = field(default=())
    silent: Sequence[Example] = field(default=())


def draw(
    windows: Windows, value_T: npt.NDArray[np.float32], *, number: int, quantiles: int, generator: np.random.Generator
) -> tuple[list[Example], list[Example]]:
    """``number`` examples in which the latent is on, evenly from ``quantiles`` parts of their order, strongest first;
    and as many in which it is off. Fewer where there are no more."""
    peak_W = windows.greatest(value_T)
    on = np.flatnonzero(peak_W > 0)
    order = on[np.argsort(-peak_W[on], kind="stable")]
    activating = []
    for quantile, part in enumerate(np.array_split(order, quantiles)):
        wanted = number // quantiles + (quantile < number % quantiles)
        chosen = generator.permutation(part)[:wanted]
        activating += [_example(windows, value_T, int(index), quantile) for index in np.sort(chosen)]
    # A window whose rows the dictionary is never applied to says nothing.
    off = np.flatnonzero((peak_W <= 0) & (windows.greatest(windows.eligible.astype(np.float32)) > 0))
    silent = [_example(windows, value_T, int(index), SILENT) for index in generator.permutation(off)[: len(activating)]]
    return activating, silent


def mark(
    activating: Sequence[Example],
    silent: Sequence[Example],
    *,
    wrong_on: Literal["silent", "activating"],
    generator: np.random.Generator,
) -> list[Marked]:
    """Every activating example with right marks, and wrong marks at random: as many in an example as the right ones
    have on average, on the silent examples or on the activating ones where the latent is weak or off."""
    right = [Marked(example, example.strong, True) for example in activating]
    usual = ceil(np.mean([one.marks.sum() for one in right])) if right else 0
    wrong = []
    for example in silent if wrong_on == "silent" else activating:
        places = np.flatnonzero(example.eligible & ~example.strong)
        marks = np.zeros(len(example.token_id), dtype=np.bool_)
        marks[generator.permutation(places)[:usual]] = True
        if marks.any():
            wrong.append(Marked(example, marks, False))
    return right + wrong


def dealt_out(
    windows: Windows, value_T: npt.NDArray[np.float32], generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    """The same values on other rows: dealt out at random to those that the dictionary is applied to."""
    found = np.zeros_like(value_T)
    found[windows.eligible] = generator.permutation(value_T[windows.eligible])
    return found


def _example(windows: Windows, value_T: npt.NDArray[np.float32], index: int, quantile: int) -> Example:
    own = windows.window(index)
    return Example(windows.token_id[own], value_T[own], windows.eligible[own], quantile)
