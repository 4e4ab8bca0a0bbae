"""A replica of several processes, each with contiguous blocks of the network: hidden states go from one to the next.

A stage fetches the states of the stage before through Ray's object store, two of them ahead, and keeps two of its own
for the stage behind: while one stage computes a batch, the one before it computes the next. Every stage writes its own
hook points to storage; the last one commits.

    load      every stage reads its own weights, side by side
    probe     a few tokens go through the stages in order: widths, and what padding needs
    settle    every stage is told, and joins the store
    begin     a unit starts in every stage
    result    the last stage's is the receipt
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from pipeline.collection.outbox import Key, Outbox
from pipeline.collection.parts import PartCollector
from pipeline.collection.prepare import CollectPass
from pipeline.collection.seconds import steps_done
from pipeline.collection.unit_run import UnitParts
from pipeline.models.stages import Link, Probed, StageForward
from pipeline.models.stages_load import load_stage
from schemas.collect import CollectWorkers
from schemas.fingerprint import require_equal
from workers.collector import Receipt, loaded_here
from workers.group import SeveralActors, start_members
from workers.member import RESULTS, STATES, UNITS, PartWorker, fetched, loaded_together, worker_name
from workers.pool import Loaded
from workers.pulse import Pulse, pulse_here

AHEAD = 2
"""States that a stage asks for before it needs them, and that it keeps for the stage behind."""


@dataclass(frozen=True)
class Packed:
    """A tensor on its way through the object store, which numpy arrays pass without being copied."""

    words: np.ndarray[Any, Any]
    is_bfloat16: bool


class Stage:
    """One stage. Final; runs as an actor."""

    def __init__(self, name: str, index: int, num_stages: int, before: Any) -> None:
        """``before``: handle of the stage before; None of the first."""
        self._name = name
        self._index = index
        self._num_stages = num_stages
        self._before = before
        self._outbox: Outbox[Packed] = Outbox(AHEAD)

    def load(self, one: CollectPass, num_threads: int) -> None:
        """Load the stage's weights."""
        self._started = time.perf_counter()
        torch.set_num_threads(num_threads)
        self._one = one
        length = one.spec.tokens.packing.context_length
        self._stage = load_stage(one.spec.model, one.hook_points, self._index, self._num_stages, context_length=length)
        require_equal(
            one.record.identity["model"],
            self._stage.loaded.identity,
            where=f"the model that worker {worker_name(self._name)} loaded",
            remedy="Every machine must see the same files at model.path.",
        )

    def probe(self, loaded: None, before: Probed | None) -> Probed:
        """Find out widths and padding, with what the stage before found."""
        del loaded  # only waited for
        length = self._one.spec.tokens.packing.context_length
        self._forward = StageForward(self._stage, before, context_length=length)
        return self._forward.probed

    def settle(self, last: Probed) -> Loaded:
        """Join the store, with what the last stage found."""
        self._forward.settle(last)
        collector = PartCollector.open(
            self._one,
            last.widths,
            list(self._forward.widths),
            self._network,
            self._stage.loaded.device,
            worker=worker_name(self._name),
        )
        self._worker = PartWorker(collector, leads=self._stage.is_last)
        return loaded_here(self._one, self._stage.loaded.module, dict(last.widths), self._started)

    def ready(self, settled: Loaded, *others: Loaded) -> Loaded:
        """Waits for the other stages."""
        return loaded_together(settled, *others)

    @ray.method(concurrency_group=UNITS)
    def begin(self, unit: int, attempt: int, others: list[Any]) -> None:
        """Begin a unit behind those before."""
        future = self._worker.begin((unit, attempt), others)
        future.add_done_callback(partial(self._let_neighbours_go, (unit, attempt)))

    @ray.method(concurrency_group=RESULTS)
    def result(self, unit: int, attempt: int) -> UnitParts | Receipt:
        """Wait for a unit."""
        return self._worker.result((unit, attempt))

    @ray.method(concurrency_group=STATES)
    def state(self, key: Key, index: int) -> Packed:
        """A hidden state for the stage behind; waits until it is computed."""
        return self._outbox.fetch(key, index)

    @ray.method(concurrency_group=STATES)
    def give_up(self, key: Key, error: BaseException) -> None:
        """The stage behind wants no more states of the unit."""
        self._outbox.fail(key, error)

    def pulse(self) -> Pulse:
        """How this process gets on."""
        return pulse_here(steps_done())

    def _let_neighbours_go(self, key: Key, future: Any) -> None:
        error = future.exception()
        if error is None:
            return
        self._outbox.fail(key, error)
        if self._before is not None:
            self._before.give_up.remote(key, error)

    def _network(self, unit: int, attempt: int, num_batches: Callable[[], int]) -> _Linked:
        return _Linked(self._forward, _RayLink((unit, attempt), self._before, self._outbox, num_batches))


@dataclass(frozen=True)
class _Linked:
    """The network of one unit."""

    forward: StageForward
    link: Link

    def run(self, token_ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        return self.forward.run(token_ids, lengths, self.link)


@dataclass
class _RayLink:
    """Joins the stages for one unit."""

    key: Key
    before: Any
    outbox: Outbox[Packed]
    num_batches: Callable[[], int]
    _asked: deque[Any] = field(default_factory=deque)
    _num_asked: int = 0
    _num_handed: int = 0

    def receive(self) -> Tensor:
        while len(self._asked) < AHEAD and self._num_asked < self.num_batches():
            self._asked.append(self.before.state.remote(self.key, self._num_asked))
            self._num_asked += 1
        return _unpacked(fetched(self._asked.popleft()))

    def hand_on(self, hidden_BLD: Tensor) -> None:
        self.outbox.put(self.key, self._num_handed, _packed(hidden_BLD))
        self._num_handed += 1


def _packed(tensor: Tensor) -> Packed:
    host = tensor.detach().cpu()
    is_bfloat16 = host.dtype == torch.bfloat16
    return Packed((host.view(torch.uint16) if is_bfloat16 else host).numpy(), is_bfloat16)


def _unpacked(packed: Packed) -> Tensor:
    # A copy: what comes out of the object store must not be written to.
    tensor = torch.from_numpy(packed.words.copy())
    return tensor.view(torch.bfloat16) if packed.is_bfloat16 else tensor


def start_stages(name: str, job: CollectPass, limits: CollectWorkers) -> SeveralActors:
    """Start all stages and have them load."""
    actors, group = start_members(Stage, name, limits, strategy="PACK")
    num_threads = max(1, int(limits.cpus_per_worker))
    loads = [actor.load.remote(job, num_threads) for actor in actors]
    probes: list[Any] = []
    for actor, load in zip(actors, loads, strict=True):
        probes.append(actor.probe.remote(load, probes[-1] if probes else None))
    settled = [actor.settle.remote(probes[-1]) for actor in actors]
    ready = actors[-1].ready.remote(settled[-1], *settled[:-1])
    return SeveralActors(actors, group, [ready, *settled, *probes, *loads])
