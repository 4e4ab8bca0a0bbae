"""The contract between a dictionary's loss and the trainer that optimises it.

An objective adds up over rows: it leaves *sums* in the gradients and in the totals. Only after both were reduced over
the ranks are they divided by ``normaliser``, itself a function of global sums. What a loss must know of the whole
global batch before there are gradients (which values are the largest, how often a latent is on), it finds out in
``prepare``. That is all of data parallelism.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.training.totals import BatchTotals
from pipeline.training.world import World

DEAD_AFTER_TOKENS = 1_000_000
"""The window in which "dead" is counted where nothing in a loss depends on it."""

ClearMoments = Callable[[nn.Parameter, torch.Tensor], None]
"""Forget what the optimiser remembers of some rows (int64 indices) of a parameter."""


@dataclass(frozen=True)
class StepFacts:
    """What a step is told; equal on all ranks but for ``row_ids`` and, where ranks share a dictionary, ``dead``."""

    num_rows: int
    """Rows of the global batch."""
    num_steps: int
    """Steps taken before this one."""
    progress: float
    """Share of the run that is behind."""
    dead: torch.Tensor
    """bool [F], latents that count as dead."""
    num_dead: int
    """How many of all latents do, those of other ranks too."""
    world: World
    """The ranks."""
    row_ids: npt.NDArray[np.int64] | None = None
    """Ids of this rank's rows, the same whichever rank has them; what random choices among rows depend on."""
    error_weight: float = 1.0
    """Weight of the squared errors of reconstructions of the targets."""

    @property
    def once(self) -> float:
        """1 on the first of the ranks that hold a dictionary together, 0 on the others: the factor in ``BatchTotals``
        of what each of them knows whole."""
        return float(self.world.latents.rank == 0)


class Objective(Protocol):
    """One loss. The ``grad`` of every parameter exists and is added to, never replaced.

    Of ranks that hold a dictionary together (``World.latents``) each adds what its latents contribute, and the first
    of them what no latent does; b_dec and W_skip, which all of them have, get the sum.
    """

    def prepare(self, blocks: Sequence[torch.Tensor], facts: StepFacts) -> None:
        """Look at the rank's rows before there are gradients; every rank calls it, collectives are allowed.

        ``blocks``: scaled sources [B, S], as many rows at a time as pre-activations may exist of.
        """
        ...

    def accumulate(
        self, block: int, x_BS: torch.Tensor, y_BT: torch.Tensor, totals: BatchTotals, facts: StepFacts
    ) -> None:
        """Add gradients and totals of the rows of one of the blocks (any number of rows, 0 too)."""
        ...

    def normaliser(self, totals: BatchTotals, num_rows: int) -> float:
        """What sums over the global batch are divided by."""
        ...

    def loss_sum(self, totals: BatchTotals, error_weight: float = 1.0) -> float:
        """The whole objective over the global batch, before the division; ``error_weight``: see ``StepFacts``."""
        ...

    def complete_gradients(self) -> None:
        """Add what follows from the reduced gradients."""
        ...

    def finish(
        self, blocks: Sequence[torch.Tensor], totals: BatchTotals, facts: StepFacts, clear_moments: ClearMoments
    ) -> None:
        """After the update: advance what the loss keeps, replace what it replaces; collectives are allowed."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """What the next step depends on and no other state has; live tensors, equal on all ranks."""
        ...

    @property
    def dead_after_tokens(self) -> int:
        """A latent is dead when it did not fire in this many rows."""
        ...

    @property
    def block_rows(self) -> int | None:
        """Rows of a block where pre-activations are not kept; None: they are, so what memory they take decides."""
        ...
