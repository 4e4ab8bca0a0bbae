"""How well rows are mixed: rows of one context are correlated, so a batch should hold as few of them as chance does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ShuffleQuality:
    """Chance that two rows of a batch are of one context."""

    rate: float
    """Measured in the batch."""
    ideal: float
    """Expected of rows drawn without replacement from the whole epoch."""

    @property
    def excess(self) -> float:
        """``rate / ideal``: 1 is a perfect shuffle; n means n times as many related pairs as it would give."""
        if self.ideal:
            return self.rate / self.ideal
        return 1.0 if self.rate == 0 else float("inf")


def shuffle_quality(contexts: npt.NDArray[np.int64], ideal: float) -> ShuffleQuality:
    """``contexts``: the context of each row of a batch, [b]; ``ideal``: the same rate over the whole epoch."""
    _, counts = np.unique(contexts, return_counts=True)
    pairs = len(contexts) * (len(contexts) - 1)
    same = int((counts * (counts - 1)).sum())
    return ShuffleQuality(same / pairs if pairs else 0.0, ideal)
