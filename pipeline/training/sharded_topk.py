"""TopK over latents that lie on several ranks: each rank's own k largest, of which the k largest of all are kept.

What is among the k largest of all latents is among the k largest of its shard, so the choice is exact. It costs one
exchange of k values of each row and shard; latents and decoder rows stay where they are.

Letters: B rows, F latents of this rank, K slots of a row, N shards.
"""

from __future__ import annotations

import torch

from pipeline.dictionaries.codes import SparseCodes
from pipeline.training.world import World


def keep_largest(codes: SparseCodes, k: int, latents: World) -> SparseCodes:
    """This rank's part of the k largest of all shards.

    ``codes``: the min(k, F) largest of each row on this rank, negative ones cut to 0. Of values that tie at the k-th
    place those of the lowest latents are kept. Slots that lose are set to 0. All ranks of ``latents`` call it together.
    """
    if latents.size == 1:
        return codes
    own_BK = torch.nn.functional.pad(codes.values, (0, k - codes.values.shape[1]))
    all_NBK = latents.all_gather(own_BK)
    all_BK = all_NBK.transpose(0, 1).flatten(1)
    least_B1 = all_BK.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    tied_BK = (codes.values == least_B1) & (least_B1 > 0)
    # Places that the tied of this shard may have: of the k those that larger values and shards before it leave.
    taken_B = (all_BK > least_B1).sum(1) + (all_NBK[: latents.rank] == least_B1).sum((0, 2))
    free_B1 = (k - taken_B).clamp_(min=0)[:, None]
    if bool((tied_BK.sum(1, keepdim=True) > free_B1).any()):
        tied_BK &= _places(tied_BK, codes.indices) < free_B1
    return SparseCodes(codes.values * ((codes.values > least_B1) | tied_BK), codes.indices)


def _places(tied_BK: torch.Tensor, indices_BK: torch.Tensor) -> torch.Tensor:
    """Of a tied slot how many tied slots of its row have lower latents, [B, K]."""
    keys_BK = indices_BK.masked_fill(~tied_BK, torch.iinfo(torch.int64).max)
    return keys_BK.argsort(1).argsort(1)
