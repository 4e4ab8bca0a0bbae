"""What a batch adds up to over all ranks: one float64 vector, one collective.

Everything that decides a step (normalisers, dead latents) comes from these sums over the whole global batch, never
from a rank's share, so N ranks take the step that one rank takes.

Letters: F latents, T summed width of the targets.
"""

from __future__ import annotations

import torch

from pipeline.training.world import World

_NUM_SCALARS = 7


class BatchTotals:
    """Sums over rows; all fields are views of ``flat``.

    Where ranks hold a dictionary together, ``fired`` is of this rank's latents and everything else a part of the sum:
    what all of them know, such as the error, is added once (``StepFacts.once``).
    """

    def __init__(self, width_target: int, num_latents: int, device: torch.device) -> None:
        self.flat = torch.zeros(_NUM_SCALARS + width_target + num_latents, dtype=torch.float64, device=device)
        scalars, self.target_sum, self.fired = torch.split(self.flat, [_NUM_SCALARS, width_target, num_latents])
        self._of_all_latents = self.flat[: _NUM_SCALARS + width_target]
        (
            self.error, self.auxiliary, self.penalty, self.num_active, self.target_square, self.power, self.next_power,
        ) = scalars.unbind()  # fmt: skip
        # error: squared error of the reconstruction; auxiliary: what else a kind minimises (of TopK the squared error
        # of AuxK); penalty: the sparsity term, with its coefficient (of TopK the squared errors of further
        # reconstructions); num_active: active latents; target_square: squared norms of y; power and next_power: codes
        # to the powers p and p' of P-annealing; target_sum [T]: y; fired [F]: rows in which a latent was active.

    def clear(self) -> None:
        """Back to zero for the next batch."""
        self.flat.zero_()

    def reduce(self, world: World) -> None:
        """The sums over all ranks."""
        if world.latents.size == 1:
            world.all_reduce_sum(self.flat)
        else:
            world.all_reduce_sum(self._of_all_latents)
            world.rows.all_reduce_sum(self.fired)

    def add_target_moments(self, sum_T: torch.Tensor, square: torch.Tensor) -> None:
        """Add the rows' contribution to the variance, see ``batch.SharedRows``."""
        self.target_sum += sum_T
        self.target_square += square

    def variance(self, num_rows: int) -> float:
        """sum ||y - mean y||^2 over the global batch; only meaningful after the reduction. At least 1e-12."""
        centre = float(self.target_sum.square().sum()) / num_rows
        return max(float(self.target_square) - centre, 1e-12)
