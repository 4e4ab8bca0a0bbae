"""The ranks of a training run, as the engine sees them: rank, size and four collectives.

The engine never imports a launcher: Ray Train, ``torchrun`` and a plain process differ only in the ``World`` that
they hand over. Ranks form a grid. Those of one row of it hold a dictionary together, a slice of its latents each, and
see the same rows of the store (``latents``); those of one column hold the same latents and see other rows (``rows``).
Usually there is one column: each rank holds whole dictionaries.

    rank = place in ``rows`` * number of shards + place in ``latents``
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist

from schemas.errors import SpecError


class World(Protocol):
    """What all ranks share. Collectives work in place and must be called by every rank in the same order."""

    @property
    def rank(self) -> int:
        """0 .. size - 1; rank 0 writes."""
        ...

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    @property
    def ranks_per_node(self) -> int:
        """Ranks that share this machine's memory."""
        ...

    @property
    def rows(self) -> World:
        """The ranks that hold the same latents as this one; together they see every row of a batch once."""
        ...

    @property
    def latents(self) -> World:
        """The ranks that hold a dictionary together with this one; all of them see the same rows."""
        ...

    def all_reduce_sum(self, tensor: torch.Tensor) -> None:
        """Add over the ranks; afterwards every rank holds the same bits."""
        ...

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all ranks, which have one shape, [size, ...]; a new tensor unless there is one rank."""
        ...

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> None:
        """Overwrite with the tensor of rank ``src``."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks."""
        ...


class SingleWorld:
    """One process, nothing to exchange."""

    rank = 0
    size = 1
    ranks_per_node = 1

    @property
    def rows(self) -> World:
        """The only rank."""
        return self

    @property
    def latents(self) -> World:
        """The only rank."""
        return self

    def all_reduce_sum(self, tensor: torch.Tensor) -> None:
        """The sum over one rank."""

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor of the only rank."""
        return tensor[None]

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> None:
        """The tensor of the only rank."""

    def barrier(self) -> None:
        """Nobody to wait for."""


class TorchWorld:
    """Ranks of ``torch.distributed``; the launcher has initialised it and destroys it."""

    rows: World
    latents: World

    def __init__(self, ranks: Sequence[int] | None = None, group: dist.ProcessGroup | None = None) -> None:
        """``ranks``: global numbers of those in ``group``, ascending; None: all, in the default group."""
        self._ranks = list(range(dist.get_world_size()) if ranks is None else ranks)
        self._group = group
        self.rank, self.size = self._ranks.index(dist.get_rank()), len(self._ranks)
        self.ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.rows, self.latents = self, SingleWorld()

    def all_reduce_sum(self, tensor: torch.Tensor) -> None:
        """``dist.all_reduce`` with SUM."""
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=self._group)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """``dist.all_gather``."""
        gathered = tensor.new_empty(self.size, *tensor.shape)
        dist.all_gather(list(gathered.unbind(0)), tensor.contiguous(), group=self._group)
        return gathered

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> None:
        """``dist.broadcast``; ``src`` counts within the group."""
        dist.broadcast(tensor, src=self._ranks[src], group=self._group)

    def barrier(self) -> None:
        """``dist.barrier``."""
        dist.barrier(group=self._group)


def torch_world(latent_shards: int = 1) -> TorchWorld:
    """All ranks of ``torch.distributed`` as a grid; they call it together, since groups are made together.

    Raises:
        SpecError: ``latent_shards`` does not divide the number of ranks.
    """
    world = TorchWorld()
    require_grid(world.size, latent_shards)
    if latent_shards > 1:
        world.rows = _own([range(shard, world.size, latent_shards) for shard in range(latent_shards)])
        world.latents = _own([range(at, at + latent_shards) for at in range(0, world.size, latent_shards)])
    return world


def require_grid(num_ranks: int, latent_shards: int) -> None:
    """Refuse ranks that do not form a grid.

    Raises:
        SpecError: naming both numbers.
    """
    if num_ranks % latent_shards:
        raise SpecError(
            f"{num_ranks} ranks cannot hold dictionaries in {latent_shards} shards each: workers.latent_shards "
            f"({latent_shards}) must divide the number of ranks"
        )


def _own(groups: Sequence[range]) -> World:
    """The one of the groups that this rank is in; all ranks make all groups, as ``dist.new_group`` asks."""
    made = [(ranks, dist.new_group(list(ranks))) for ranks in groups]
    ranks, group = next(one for one in made if dist.get_rank() in one[0])
    return TorchWorld(ranks, group) if len(ranks) > 1 else SingleWorld()
