"""The sparse code of a batch of rows.

Letters: B rows, F latents, K active latents of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SparseCodes:
    """At most K active latents of each row; a slot whose value is 0 is not active, whatever its index says."""

    values: torch.Tensor
    """[B, K], none negative."""
    indices: torch.Tensor
    """[B, K] int64; those of active slots are distinct within a row."""

    def dense(self, num_latents: int) -> torch.Tensor:
        """[B, F]."""
        codes_BF = self.values.new_zeros(self.values.shape[0], num_latents)
        # Added, not written: a slot that is not active may name the latent of one that is.
        return codes_BF.scatter_add_(1, self.indices, self.values)
