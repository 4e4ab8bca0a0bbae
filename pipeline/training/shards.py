"""Dictionaries whose latents lie on several ranks: who has which, what their codes decode to together, and the way
between the slices on the ranks and the whole tensors of a file.

A slice at a time goes between the ranks, so no rank but the first, which reads and writes files, ever has a whole one.

Letters: B rows, F latents, T width of the targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.world import World


def latents_of(num_latents: int, latents: World, shard: int | None = None) -> range:
    """The latents of a shard, this rank's by default: neighbours, and as many on each rank, or one more."""
    shard = latents.rank if shard is None else shard
    return range(num_latents * shard // latents.size, num_latents * (shard + 1) // latents.size)


def decode(dictionary: Dictionary, codes: torch.Tensor, x_BS: torch.Tensor, latents: World) -> torch.Tensor:
    """``dictionary.decode`` over the codes of all ranks, equal on all of them; differentiable in this rank's weights.

    b_dec and skip take part, and get a gradient, on the first rank.
    """
    if latents.size == 1:
        return dictionary.decode(codes, x_BS)
    if latents.rank == 0:
        return sum_over(dictionary.decode(codes, x_BS), latents)
    return sum_over(dictionary.written(codes), latents)


def sum_over(part_BT: torch.Tensor, latents: World) -> torch.Tensor:
    """The sum of all ranks' parts. Its gradient, which every rank knows, is the gradient of each part."""
    if latents.size == 1:
        return part_BT
    return cast(torch.Tensor, _Sum.apply(part_BT, latents))  # type: ignore[no-untyped-call]


def is_sliced(name: str) -> bool:
    """A tensor of ``DictionaryTrainer.state()`` has a row for each latent, and lies where the latent does."""
    kind, _, weight = name.partition(".")
    return kind not in {"buffers", "objective", "divergence"} and weight not in {"b_dec", "skip"}


def gather(state: Mapping[str, torch.Tensor], num_latents: int, latents: World) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and whole tensors, on the first rank's CPU, of a state's slices, one after the other.

    The ranks go through it together; for all but the first there is nothing in it.
    """
    for name, tensor in state.items():
        whole = _gather(tensor, num_latents, latents) if latents.size > 1 and is_sliced(name) else tensor
        if latents.rank == 0 and whole is not None:
            yield name, whole


def scatter(whole: torch.Tensor | None, slice_out: torch.Tensor, num_latents: int, world: World) -> None:
    """Overwrite every rank's slice with its rows of what rank 0 has whole; the others give None."""
    for shard in range(world.latents.size):
        part = slice_out
        if world.latents.size > 1:
            rows = latents_of(num_latents, world.latents, shard)
            part = slice_out.new_empty(len(rows), *slice_out.shape[1:])
            if whole is not None:
                part.copy_(whole[rows.start : rows.stop])
        elif whole is not None:
            part.copy_(whole)
        world.broadcast(part)
        if shard == world.latents.rank and part is not slice_out:
            slice_out.copy_(part)


def whole_dictionary(dictionary: Dictionary, latents: World) -> Dictionary | None:
    """On the first rank one with all latents, on the CPU; None on the others. The ranks call it together."""
    if latents.size == 1:
        return dictionary
    buffers = dict(dictionary.named_buffers())
    slices = {name: tensor for name, tensor in dictionary.state_dict().items() if name not in buffers}
    named = {f"weights.{name}": tensor for name, tensor in slices.items()}
    weights = dict(gather(named, dictionary.spec.num_latents, latents))
    if latents.rank:
        return None
    whole = Dictionary(dictionary.spec, dictionary.d_source, dictionary.d_target, dictionary.scales, device="meta")
    whole.load_state_dict(
        {name.removeprefix("weights."): tensor for name, tensor in weights.items()} | buffers, assign=True
    )
    return whole


def _gather(slice_FD: torch.Tensor, num_latents: int, latents: World) -> torch.Tensor | None:
    whole = torch.empty(num_latents, *slice_FD.shape[1:], dtype=slice_FD.dtype) if latents.rank == 0 else None
    for shard in range(latents.size):
        rows = latents_of(num_latents, latents, shard)
        part = slice_FD if shard == latents.rank else slice_FD.new_empty(len(rows), *slice_FD.shape[1:])
        latents.broadcast(part, src=shard)
        if whole is not None:
            whole[rows.start : rows.stop] = part
    return whole


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part_BT: torch.Tensor, latents: World) -> torch.Tensor:
        whole_BT = part_BT.clone()
        latents.all_reduce_sum(whole_BT)
        return whole_BT

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None
