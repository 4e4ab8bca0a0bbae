"""Which pre-activations of a global batch BatchTopK keeps, and their codes.

The k * rows largest positive ones of all ranks' rows are kept; where values tie at the smallest of them, all of the
tied are. The rank's candidates are those above a bound: half of the last step's smallest where enough values lie above
it, which the counts of all ranks tell, otherwise 0. So the choice never depends on the bound.

Letters: B rows, F latents, K active latents of a row.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pipeline.dictionaries.codes import SparseCodes
from pipeline.training.selection import kth_largest
from pipeline.training.world import SingleWorld, World


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

    def select(self, pre_activations: Iterable[torch.Tensor], num_kept: int, bound: float, world: World) -> bool:
        """Take the blocks' pre-activations [B, F], one after the other; every rank must call it.

        Returns:
            Whether enough values lay above ``bound``; if not (never with 0), nothing was selected on any rank.
        """
        found, sizes = self._candidates(pre_activations, num_kept, bound)
        threshold, count = kth_largest(torch.cat([values.float() for values, _ in found]), num_kept, world)
        if bound > 0 and count < num_kept:
            return False
        self.threshold = float(threshold)
        self._codes = [self._pack(*part, size, threshold) for part, size in zip(found, sizes, strict=True)]
        return True

    def _candidates(
        self, pre_activations: Iterable[torch.Tensor], num_kept: int, bound: float
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[int]]:
        """``(values, flat places)`` of each block above a bound that rises as more are found, and the blocks' rows."""
        smallest = torch.finfo(torch.float32).tiny
        least, crowd = max(bound, smallest), 0
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        sizes = []
        for pre_BF in pre_activations:
            flat = pre_BF.reshape(-1)
            places = (flat >= least).nonzero().squeeze(1)
            found.append((flat[places], places))
            sizes.append(len(pre_BF))
            crowd += len(places)
            if crowd > 2 * num_kept:
                # What is smaller than this rank's own k-th cannot be among the k largest of all.
                kept, _ = kth_largest(torch.cat([values.float() for values, _ in found]), num_kept, SingleWorld())
                least = float(kept)
                found = [_above(values, places, least) for values, places in found]
                crowd = sum(len(values) for values, _ in found)
        return found, sizes

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


def _above(values: torch.Tensor, places: torch.Tensor, least: float) -> tuple[torch.Tensor, torch.Tensor]:
    kept = values.float() >= least
    return values[kept], places[kept]
