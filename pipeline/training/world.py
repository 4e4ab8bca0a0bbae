"""The ranks of a training run, as the engine sees them: rank, size and three collectives.

The engine never imports a launcher: Ray Train, ``torchrun`` and a plain process differ only in the ``World`` that
they hand over.
"""

from __future__ import annotations

import os
from typing import Protocol

import torch
import torch.distributed as dist


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

    def all_reduce_sum(self, tensor: torch.Tensor) -> None:
        """Add over the ranks; afterwards every rank holds the same bits."""
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

    def all_reduce_sum(self, tensor: torch.Tensor) -> None:
        """The sum over one rank."""

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> None:
        """The tensor of the only rank."""

    def barrier(self) -> None:
        """Nobody to wait for."""


class TorchWorld:
    """The default process group of ``torch.distributed``; the launcher has initialised it and destroys it."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def all_reduce_sum(self, tensor: torch.Tensor) -> None:
        """``dist.all_reduce`` with SUM."""
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> None:
        """``dist.broadcast``."""
        dist.broadcast(tensor, src=src)

    def barrier(self) -> None:
        """``dist.barrier``."""
        dist.barrier()
