"""A replica of several processes of one node that split every matrix product of the network.

The ranks join a process group of ``torch.distributed`` and run the same units in the same order. A rank that fails in
the middle of a unit's forwards is out of step with the others, who wait for it within a collective: it reports its
error and ends its process, and the replica is replaced.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed
from torch import Tensor

from pipeline.collection.outbox import Key
from pipeline.collection.parts import PartCollector
from pipeline.collection.prepare import CollectPass
from pipeline.collection.seconds import steps_done
from pipeline.collection.unit_run import UnitParts
from pipeline.models.precision import resolve_device
from pipeline.models.tensor import RankForward, load_shard
from schemas.collect import CollectWorkers
from schemas.fingerprint import require_equal
from workers.collector import Receipt, loaded_here
from workers.group import SeveralActors, start_members
from workers.member import RESULTS, UNITS, PartWorker, loaded_together, worker_name
from workers.pool import Loaded
from workers.pulse import GROUP, Pulse, pulse_here

LOAD_TIMEOUT = timedelta(hours=2)
"""How long ranks wait for each other; a rank that reads its weights over a slow link may take long."""

_EXIT_DELAY_S = 1.0


class Rank:
    """One rank. Final; runs as an actor."""

    def __init__(self, name: str, index: int, num_ranks: int, before: Any) -> None:
        del before
        self._name = name
        self._rank = index
        self._num_ranks = num_ranks
        self._counted: dict[Key, _Counted] = {}

    def address(self) -> str:
        """Where the ranks meet: a free port of this node."""
        with socket.socket() as free:
            free.bind(("", 0))
            host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            return f"tcp://{host}:{free.getsockname()[1]}"

    def load(self, one: CollectPass, num_threads: int, address: str) -> Loaded:
        """Meet the other ranks, load this one's share of the weights and join the store."""
        started = time.perf_counter()
        torch.set_num_threads(num_threads)
        device = resolve_device(one.spec.model)
        # Ray shows every process its own GPU, as the first.
        os.environ["LOCAL_RANK"] = "0"
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=address,
            rank=self._rank,
            world_size=self._num_ranks,
            timeout=LOAD_TIMEOUT,
        )
        loaded = load_shard(one.spec.model, self._num_ranks)
        require_equal(
            one.record.identity["model"],
            loaded.identity,
            where=f"the model that worker {worker_name(self._name)} loaded",
            remedy="Every machine must see the same files at model.path.",
        )
        length = one.spec.tokens.packing.context_length
        self._forward = RankForward.open(loaded, one.hook_points, self._rank, self._num_ranks, context_length=length)
        widths = dict(self._forward.inner.widths)
        collector = PartCollector.open(
            one, widths, self._forward.own, self._network, loaded.device, worker=worker_name(self._name)
        )
        self._worker = PartWorker(collector, leads=self._rank == self._num_ranks - 1)
        return loaded_here(one, self._forward.inner.network, widths, started, share_of_heads=1 / self._num_ranks)

    def ready(self, loaded: Loaded, *others: Loaded) -> Loaded:
        """Waits for the other ranks."""
        return loaded_together(loaded, *others)

    @ray.method(concurrency_group=UNITS)
    def begin(self, unit: int, attempt: int, others: list[Any]) -> None:
        """Begin a unit behind those before."""
        self._worker.begin((unit, attempt), others)

    @ray.method(concurrency_group=RESULTS)
    def result(self, unit: int, attempt: int) -> UnitParts | Receipt:
        """Wait for a unit."""
        key = unit, attempt
        try:
            return self._worker.result(key)
        except BaseException:
            counted = self._counted.get(key)
            if counted is not None and not counted.is_through:
                threading.Timer(_EXIT_DELAY_S, os._exit, [1]).start()
            raise
        finally:
            self._counted.pop(key, None)

    @ray.method(concurrency_group=GROUP)
    def pulse(self) -> Pulse:
        """How this process gets on."""
        return pulse_here(steps_done())

    def _network(self, unit: int, attempt: int, num_batches: Callable[[], int]) -> _Counted:
        counted = _Counted(self._forward, num_batches)
        self._counted[unit, attempt] = counted
        return counted


@dataclass
class _Counted:
    """The network of one unit, and how far its forwards are."""

    forward: RankForward
    num_batches: Callable[[], int]
    num_run: int = 0

    @property
    def is_through(self) -> bool:
        """Nothing of the unit is left that the other ranks could wait for."""
        return 0 < self.num_batches() == self.num_run

    def run(self, token_ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        found = self.forward.run(token_ids, lengths)
        self.num_run += 1
        return found


def start_ranks(name: str, job: CollectPass, limits: CollectWorkers) -> SeveralActors:
    """Start all ranks on one node and have them load."""
    actors, group = start_members(Rank, name, limits, strategy="STRICT_PACK")
    num_threads = max(1, int(limits.cpus_per_worker))
    address = actors[0].address.remote()
    loads = [actor.load.remote(job, num_threads, address) for actor in actors]
    return SeveralActors(actors, group, [actors[-1].ready.remote(loads[-1], *loads[:-1]), *loads])
