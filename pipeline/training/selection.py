"""The k-th largest of values that lie on several ranks, exactly, without moving them.

The bits of a positive float32, read as an integer, order as the floats do. Three rounds fix them from the top, 11, 10
and 10 at a time: every rank counts its values by the next bits, the counts are summed, and the bin that holds the k-th
is the same on all ranks.
"""

from __future__ import annotations

import torch

from pipeline.training.world import World

_ROUNDS = ((20, 11), (10, 10), (0, 10))
"""Bits below those of the round, and how many those are."""


def kth_largest(values: torch.Tensor, k: int, world: World) -> tuple[torch.Tensor, int]:
    """``(value, count)``: the k-th largest over all ranks as a float32 scalar, and how many values all ranks have.

    Of fewer than k values the smallest, of none 0. Every rank calls it with its own ``values``, positive float32 [n].
    """
    bits = values.view(torch.int32)
    remaining, total = k, 0
    found = 0
    for shift, width in _ROUNDS:
        bins = (bits >> shift) & (2**width - 1)
        counts = torch.bincount(bins, minlength=2**width)
        world.all_reduce_sum(counts)
        if shift == _ROUNDS[0][0]:
            total = int(counts.sum())
            remaining = min(k, total)
            if total == 0:
                break
        at_least = counts.flip(0).cumsum(0).flip(0)
        chosen = int((at_least >= remaining).nonzero().max())
        remaining -= int(at_least[chosen] - counts[chosen])
        bits = bits[bins == chosen]
        found |= chosen << shift
    return torch.tensor(found, dtype=torch.int32, device=values.device).view(torch.float32), total
