"""The process that computes units of a collection.

``Collector`` is an ordinary class, made an actor where it is started. Its constructor does nothing: the model is loaded
by a method, so that an error of loading comes back as a value of its own and is not taken for a death. A collector
writes its units straight to the store and returns a receipt of a few hundred bytes. Units that it is asked for at the
same time overlap: while one is encoded and written, the next one is computed.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass

import torch
from torch import nn

from pipeline import logs
from pipeline.collection.overlap import OverlappedCollector
from pipeline.collection.prepare import CollectPass
from pipeline.collection.seconds import steps_done
from pipeline.collection.unit import UnitCollector
from pipeline.collection.unit_run import Collected
from pipeline.models.hooks import is_gradient
from pipeline.models.utilisation import flop_per_token, peak_flop_per_s
from workers.pool import Loaded
from workers.pulse import Pulse, pulse_here


@dataclass(frozen=True)
class Receipt:
    """A unit is committed."""

    unit: int
    num_rows: int
    size_bytes: int
    attempt: int
    seconds: dict[str, float]
    """Stage -> seconds, as in the ledger, and ``total``."""


def loaded_here(
    one: CollectPass, network: nn.Module, widths: dict[str, int], started: float, *, share_of_heads: float = 1.0
) -> Loaded:
    """What this process says once it has ``network``, its part of the model; ``started`` by ``time.perf_counter``."""
    weights = next(network.parameters(), None)
    peak = peak_flop_per_s(weights.device, weights.dtype) if weights is not None else None
    return Loaded(
        widths,
        os.getpid(),
        socket.gethostname(),
        time.perf_counter() - started,
        flop_per_token=flop_per_token(
            network,
            one.spec.tokens.packing.context_length,
            goes_back=any(is_gradient(hook) for hook in one.hook_points),
            share_of_heads=share_of_heads,
        ),
        peak_flop_per_s=peak.flop_per_s if peak else 0.0,
        peak_source=peak.source if peak else "",
    )


class Collector:
    """One model replica. Final; runs as an actor, or as it is where there is no Ray."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._collector: UnitCollector | None = None
        self._stages: OverlappedCollector[Collected] | None = None
        self._opening = threading.Lock()

    def load(self, one: CollectPass, num_threads: int) -> Loaded:
        """Load the model and join the store."""
        started = time.perf_counter()
        logs.configure_actor()
        torch.set_num_threads(num_threads)
        self._collector = UnitCollector.open(one, worker=f"{self._name}@{socket.gethostname()}:{os.getpid()}")
        forward = self._collector.forward
        return loaded_here(one, forward.network, dict(forward.widths), started)

    def collect(self, unit: int, attempt: int) -> Receipt:
        """Compute one unit; returns when the ledger has it. From any number of threads."""
        started = time.perf_counter()
        collected = self._overlapped().submit(unit, attempt).result()
        entry = collected.entry
        size_bytes = sum(receipt.size_bytes for receipt in entry.objects.values())
        seconds = {**collected.seconds, "total": time.perf_counter() - started}
        return Receipt(unit, entry.num_rows, size_bytes, attempt, seconds)

    def pulse(self) -> Pulse:
        """How this process gets on."""
        return pulse_here(steps_done())

    def _overlapped(self) -> OverlappedCollector[Collected]:
        """The stages, whose threads end with the process."""
        assert self._collector is not None, "load comes first"
        with self._opening:
            self._stages = self._stages or self._collector.overlapped()
            return self._stages
