"""Ranks that ``torchrun`` started, or one plain process: training without Ray.

``torchrun`` says in the environment who a rank is (``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``,
``MASTER_PORT``), starts all ranks anew when one dies (``--max-restarts``), and trains on several nodes as its own
documentation says. State is the engine's: a group that starts anew goes on from the last checkpoint in the output.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pipeline.store.joined import store_urls
from pipeline.store.retention import noted_use
from pipeline.training import engine
from pipeline.training.world import SingleWorld, World, torch_world
from schemas.errors import ResourceError, SpecError
from schemas.train import TrainSpec

TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for each other: rank 0 alone writes checkpoints."""


class Ranks:
    """This process among those of its group."""

    def __init__(self) -> None:
        """Meet the others, of whom ``torchrun`` tells; without it there are none."""
        self._store: Store | None = None
        self.rank, self.size, self.local_rank = 0, 1, int(os.environ.get("LOCAL_RANK", "0"))
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            store, self.rank, self.size = next(rendezvous("env://", timeout=TIMEOUT))
            # torchrun may keep the store when it starts a group anew; the addresses in it are those of dead ranks.
            self._store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def speaks(self) -> bool:
        """Whether this rank is the first that has a failure to tell: of one mistake there is to be one message."""
        if self._store is None:
            return True
        try:
            return int(self._store.add("failures", 1)) == 1
        except RuntimeError:  # the store went with whoever kept it
            return self.rank == 0

    def train(self, spec: TrainSpec, report: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Train and return the summary of ``engine.train``; ``report`` is called on rank 0.

        Raises:
            SpecError: the spec asks for what only Ray can do. ResourceError: there are fewer GPUs than ranks.
            HeadworksError: see ``engine.train``.
        """
        _require_stored(spec)
        device = self._device(spec)
        num_threads = max(1, int(spec.workers.cpus_per_worker))
        torch.set_num_threads(num_threads)
        world = self._join(spec)
        with noted_use(store_urls(spec.store), spec.name) if world.rank == 0 else nullcontext():
            summary = engine.train(
                spec, world, report=report if world.rank == 0 else None, device=device, num_threads=num_threads
            )
        if dist.is_initialized():
            dist.destroy_process_group()
        return summary

    def _device(self, spec: TrainSpec) -> torch.device:
        if not spec.workers.use_gpu:
            return torch.device("cpu")
        found = torch.cuda.device_count()
        if self.local_rank >= found:
            raise ResourceError(
                f"{spec.name}: workers.use_gpu gives every rank a GPU; rank {self.rank} is number {self.local_rank} on "
                f"its machine, which has {found}: lower --nproc-per-node, or set workers.use_gpu to false"
            )
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    def _join(self, spec: TrainSpec) -> World:
        if self._store is None:
            _require_one(spec)
            return SingleWorld()
        dist.init_process_group(
            "nccl" if spec.workers.use_gpu else "gloo",
            store=self._store,
            rank=self.rank,
            world_size=self.size,
            timeout=TIMEOUT,
        )
        return torch_world(spec.workers.latent_shards)


def _require_stored(spec: TrainSpec) -> None:
    if spec.feed != "stored":
        raise SpecError(
            f"{spec.name}: feed {spec.feed} trains while a collection runs, which needs Ray: use `headworks run`, or "
            "feed: stored once the store is complete"
        )


def _require_one(spec: TrainSpec) -> None:
    if spec.workers.latent_shards > 1:
        raise SpecError(
            f"{spec.name}: workers.latent_shards is {spec.workers.latent_shards}, and this is one process: start "
            f"{spec.workers.num_workers} with torchrun --nproc-per-node, or set latent_shards to 1"
        )
