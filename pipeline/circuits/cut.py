"""Cutting a ranking of nodes to a circuit: as many of the first ones as the target loss needs.

Letters: N prompts, M nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.circuits.calibration import Calibration, accuracy, calibrate, task_loss
from pipeline.circuits.network import MaskedNetwork
from pipeline.circuits.tasks.pairs import Pairs

Kept = npt.NDArray[np.bool_]
"""bool [M]: the nodes of a circuit."""


@dataclass(frozen=True)
class Measured:
    """A network with some nodes left out, on held-out prompts."""

    loss: float
    """With scale and shift."""
    raw_loss: float
    """Without."""
    accuracy: float
    """Share of prompts whose right answer has the greater logit, without scale and shift."""
    calibration: Calibration

    def as_json(self) -> dict[str, Any]:
        """For ``circuits.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Examination:
    """Measures a network on a task: scale and shift are fitted on prompts of the search, all else is held out."""

    network: MaskedNetwork
    fitted: Pairs
    held_out: Pairs

    @torch.no_grad()
    def of(self, kept: Kept | None) -> Measured:
        """With only the nodes ``kept`` let through; None: the intact network."""
        gates = None if kept is None else torch.from_numpy(kept).float().to(self.network.device)
        calibration = calibrate(self._margins(self.fitted, gates), self.fitted.signs)
        margins, signs = self._margins(self.held_out, gates), self.held_out.signs
        return Measured(
            loss=float(task_loss(margins, signs, calibration)),
            raw_loss=float(task_loss(margins, signs)),
            accuracy=accuracy(margins, signs),
            calibration=calibration,
        )

    def _margins(self, pairs: Pairs, gates: Tensor | None) -> Tensor:
        return torch.cat([self.network.margins(part, gates) for part in pairs.split(_PAIRS_AT_ONCE)])


_PAIRS_AT_ONCE = 128


@dataclass(frozen=True)
class Cut:
    """The first nodes of a ranking."""

    kept: Kept
    measured: Measured
    fewer: tuple[Kept, Measured] | None
    """With one node less, which misses the target; None where the target is met without any node, or not at all."""
    reached: bool
    """Whether ``measured`` has at most the target loss; where it has not, ``kept`` are all nodes."""


def cut(ranking: npt.NDArray[np.int64], target: float, measure: Callable[[Kept], Measured], *, guess: int) -> Cut:
    """Bisect how many of the first nodes of ``ranking``, int64 [M], meet the target while one less does not.

    The loss need not fall with every node, so there may be several such numbers: the search begins below ``guess``,
    the number of nodes whose gates are open, if that many meet the target.
    """
    measured: dict[int, Measured] = {}

    def loss(count: int) -> float:
        if count not in measured:
            measured[count] = measure(_first(ranking, count))
        return measured[count].loss

    high = guess if 0 < guess < len(ranking) and loss(guess) <= target else len(ranking)
    if loss(high) > target:
        return Cut(_first(ranking, high), measured[high], None, reached=False)
    low = 0
    if loss(low) <= target:
        return Cut(_first(ranking, 0), measured[0], None, reached=True)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if loss(middle) <= target else (middle, high)
    return Cut(_first(ranking, high), measured[high], (_first(ranking, low), measured[low]), reached=True)


def most_looks(number: int) -> int:
    """How often ``cut`` measures at most, of so many nodes: at the guess, with all, with none, and while it bisects."""
    return 3 + number.bit_length()


def interpolated(found: Cut, target: float, count: Callable[[Kept], int]) -> float:
    """``count`` of edges at the target loss: between those of the circuit and those with one node less, linearly in the
    loss."""
    edges = float(count(found.kept))
    if found.fewer is None or not found.reached:
        return edges
    kept, measured = found.fewer
    share = (target - found.measured.loss) / (measured.loss - found.measured.loss)
    return edges + share * (count(kept) - edges)


def ranked(values: Tensor) -> npt.NDArray[np.int64]:
    """Nodes from the highest value to the lowest, equal ones in the order of their numbers."""
    return np.argsort(-values.numpy(), kind="stable").astype(np.int64)


def _first(ranking: npt.NDArray[np.int64], count: int) -> Kept:
    kept = np.zeros(len(ranking), dtype=np.bool_)
    kept[ranking[:count]] = True
    return kept
