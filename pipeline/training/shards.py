"""Dictionaries whose latents lie on several ranks: who has which, and the sum of what their codes decode to.

Letters: B rows, F latents, T width of the targets.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from pipeline.dictionaries import blocks
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.world import World


def latents_of(num_latents: int, latents: World) -> range:
    """The latents of this rank: neighbours, and as many on each rank, or one more."""
    return range(*(num_latents * shard // latents.size for shard in (latents.rank, latents.rank + 1)))


def decode(dictionary: Dictionary, codes_BF: torch.Tensor, x_BS: torch.Tensor, latents: World) -> torch.Tensor:
    """``dictionary.decode`` over the codes of all ranks, equal on all of them; differentiable in this rank's weights.

    b_dec and skip take part, and get a gradient, on the first rank.
    """
    if latents.size == 1:
        return dictionary.decode(codes_BF, x_BS)
    if latents.rank == 0:
        return sum_over(dictionary.decode(codes_BF, x_BS), latents)
    return sum_over(blocks.decode(codes_BF, dictionary.decoder, dictionary.blocks), latents)


def sum_over(part_BT: torch.Tensor, latents: World) -> torch.Tensor:
    """The sum of all ranks' parts. Its gradient, which every rank knows, is the gradient of each part."""
    if latents.size == 1:
        return part_BT
    return cast(torch.Tensor, _Sum.apply(part_BT, latents))  # type: ignore[no-untyped-call]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part_BT: torch.Tensor, latents: World) -> torch.Tensor:
        whole_BT = part_BT.clone()
        latents.all_reduce_sum(whole_BT)
        return whole_BT

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None
