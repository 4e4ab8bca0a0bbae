"""The contract between a dictionary's loss and the trainer that optimises it.

An objective adds up over rows: it leaves *sums* in the gradients and in the totals. Only after both were reduced over
the ranks are they divided by ``normaliser``, itself a function of global sums. That is all of data parallelism.
"""

from __future__ import annotations

from typing import Protocol

import torch

from pipeline.training.totals import BatchTotals


class Objective(Protocol):
    """One loss. The ``grad`` of every parameter exists and is added to, never replaced."""

    def accumulate(
        self, x_BS: torch.Tensor, y_BT: torch.Tensor, dead_F: torch.Tensor, totals: BatchTotals, progress: float
    ) -> None:
        """Add gradients and totals of these rows (any number, 0 too).

        ``dead_F``: bool [F], latents that count as dead; ``progress``: share of the run that is behind.
        """
        ...

    def normaliser(self, totals: BatchTotals, num_rows: int) -> float:
        """What sums over the global batch are divided by."""
        ...

    def loss_sum(self, totals: BatchTotals, progress: float) -> float:
        """The whole objective over the global batch, before the division."""
        ...

    def complete_gradients(self) -> None:
        """Add what follows from the reduced gradients, then fit them to the constraint on the weights."""
        ...

    def project_weights(self) -> None:
        """Put the weights back on the constraint; after the optimiser."""
        ...

    @property
    def dead_after_tokens(self) -> int:
        """A latent is dead when it did not fire in this many rows."""
        ...
