"""Which pre-activations of a global batch BatchTopK keeps, and their codes.

The k * rows largest positive ones of all ranks' rows are kept; where values tie at the smallest of them, all of the
tied are. The rank's candidates are those above a bound: half of the last step's smallest where enough values lie above
it, which the counts of all ranks tell, otherwise 0. So the choice never depends on the bound.

Letters: B rows, F latents, K active latents of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pipeline.dictionaries.codes import SparseCodes
from pipeline.training.selection import kth_largest
from pipeline.training.world import SingleWorld, World

Above = Callable[[float], tuple[torch.Tensor, torch.Tensor]]
"""Of a block's pre-activations those of at least a bound > 0, with their places in [B * F], ascending."""


class BatchSelection:
    """The selection of one rank's rows, block by block."""

    def __init__(self, num_latents: int) -> None:
        self.threshold = 0.0
        """The smallest kept value of the global batch; 0 where none is positive."""
        self._num_latents = num_latents
        self._codes: list[SparseCodes] = []

    def __getitem__(self, block: int) -> SparseCodes:
        """Codes of the rows of a block."""
        return self._codes[block]

    def select(self, blocks: Sequence[Above], sizes: Sequence[int], num_kept: int, bound: float, world: World) -> bool:
        """Take the blocks' pre-activations, one after the other; ``sizes``: their rows. Every rank must call it.

        Returns:
            Whether enough values lay above ``bound``; if not (never with 0), nothing was selected on any rank.
        """
        found = _candidates(blocks, num_kept, bound)
        threshold, count = kth_largest(torch.cat([values.float() for values, _ in found]), num_kept, world)
        if bound > 0 and count < num_kept:
            return False
        self.threshold = float(threshold)
        self._codes = [self._pack(*part, size, threshold) for part, size in zip(found, sizes, strict=True)]
        return True

    def _pack(self, values: torch.Tensor, places: torch.Tensor, num_rows: int, threshold: torch.Tensor) -> SparseCodes:
        """Codes of a block; rows with fewer active latents than the fullest are filled up with zeros."""
        values, places = _above(values, places, float(threshold))
        rows = places // self._num_latents
        per_row = torch.bincount(rows, minlength=num_rows)
        width = max(1, int(per_row.max())) if num_rows else 1
        starts = per_row.cumsum(0) - per_row
        slots = rows * width + torch.arange(len(rows), device=rows.device) - starts[rows]
        values_BK = values.new_zeros(num_rows * width)
        indices_BK = places.new_zeros(num_rows * width)
        values_BK[slots] = values
        indices_BK[slots] = places - rows * self._num_latents
        return SparseCodes(values_BK.view(num_rows, width), indices_BK.view(num_rows, width))


def _candidates(blocks: Sequence[Above], num_kept: int, bound: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """``(values, places)`` of each block above a bound that rises as more are found."""
    least, crowd = max(bound, torch.finfo(torch.float32).tiny), 0
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for above in blocks:
        found.append(above(least))
        crowd += len(found[-1][0])
        if crowd > 2 * num_kept:
            # What is smaller than this rank's own k-th cannot be among the k largest of all.
            kept, _ = kth_largest(torch.cat([values.float() for values, _ in found]), num_kept, SingleWorld())
            least = float(kept)
            found = [_above(values, places, least) for values, places in found]
            crowd = sum(len(values) for values, _ in found)
    return found


def _above(values: torch.Tensor, places: torch.Tensor, least: float) -> tuple[torch.Tensor, torch.Tensor]:
    kept = values.float() >= least
    return values[kept], places[kept]
