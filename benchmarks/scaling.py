"""What distribution costs: efficiency from 1 to 16 nodes, the controller for each unit, and planning 10^12 tokens.

1. A Ray cluster of 16 nodes on this machine, one worker on each. Workers write real units to a real store; their
   forward sleeps as long as one of a real unit (one at a time, as on a device), so that 16 fit on two cores. Efficiency
   is the sleep of the units committed between the moment when all workers are ready and the one when no unit is left to
   lease, over that time and all workers: no start, no end.
2. The controller's decisions alone, for 64 workers; and the processor time of the whole loop (Ray's answers, decisions,
   leases) for each unit, from the run on 16 nodes.
3. ``prepare`` and a controller over 10^12 tokens in units of 65,536, of a new store and of one that is half done with a
   thousand gaps; the model is SmolLM2-135M, whose digest is known by then.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.collection import MODEL
from pipeline.collection.prepare import prepare
from pipeline.collection.units import Units
from pipeline.store.rows import TokenRows
from pipeline.store.words import to_words
from pipeline.store.writer import StoreWriter
from schemas.collect import CollectSpec, CollectWorkers
from schemas.fingerprint import fingerprint
from schemas.store import PassRecord, StoreRecord
from workers.controller import Controller
from workers.decisions import Decision, Event, LeaseUnit, UnitCommitted, WorkerReady
from workers.execution import Execution, Figures
from workers.pool import Loaded, WorkerPool
from workers.progress import Progress
from workers.pulse import Pulse, pulse_here

NODES = (1, 16)
FORWARD_S = 8.0  # a unit of 65,536 rows at 8,000 tokens/s
UNITS_PER_NODE = 8
SHARD_ROWS, WIDTH, HOOK = 2048, 64, "blocks.0.hook_resid_post"
TOKENS = 10**12


@dataclass(frozen=True)
class Job:
    url: str
    num_units: int

    def writer(self) -> StoreWriter:
        record = StoreRecord(
            fingerprint=fingerprint({}), identity={}, table_fingerprint="t" * 64, dtype="bfloat16", chunk_rows=256,
            shard_rows=SHARD_ROWS, codec="none", table_url="tokens", specials={}, spec={}, versions={},
        )  # fmt: skip
        pass_record = PassRecord(hook_points={HOOK: WIDTH}, batch_tokens=16)
        return StoreWriter.open(self.url, record, pass_record, num_rows=self.num_units * SHARD_ROWS)


@dataclass(frozen=True)
class Written:
    num_rows: int
    size_bytes: int


class Sleeper:
    """A worker whose forward sleeps."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._device = threading.Lock()
        self._steps = 0

    def load(self, job: Job, num_threads: int) -> Loaded:
        del num_threads
        self._writer = job.writer()
        return Loaded({HOOK: WIDTH}, os.getpid(), socket.gethostname(), 0.0)

    def collect(self, unit: int, attempt: int) -> Written:
        with self._device:
            time.sleep(FORWARD_S)
        start, stop = self._writer.unit_rows(unit)
        row = np.arange(start, stop)
        words = to_words(np.full((stop - start, WIDTH), unit, np.float32), "bfloat16")
        tokens = TokenRows(row, row % 50, row // 256, row % 256, row < 0)
        self._writer.write_unit(unit, {HOOK: words}, tokens, worker=self._name, attempt=attempt, seconds={})
        self._steps += 1
        return Written(stop - start, words.nbytes)

    def pulse(self) -> Pulse:
        return pulse_here(self._steps)


@dataclass
class Times:
    """When what happened."""

    num_workers: int
    num_units: int
    ready: int = 0
    leased: int = 0
    all_ready_s: float = 0.0
    none_left_s: float = 0.0
    commits: list[float] = field(default_factory=list)

    def note(self, event: Event, answer: Any = None) -> None:
        del answer
        now_s = time.perf_counter()
        self.ready += isinstance(event, WorkerReady)
        if self.ready == self.num_workers and not self.all_ready_s:
            self.all_ready_s = now_s
        if isinstance(event, UnitCommitted):
            self.commits.append(now_s)

    def decided(self, decision: Decision) -> None:
        self.leased += isinstance(decision, LeaseUnit)
        if self.leased == self.num_units and not self.none_left_s:
            self.none_left_s = time.perf_counter()

    @property
    def efficiency(self) -> float:
        within = sum(self.all_ready_s < commit <= self.none_left_s for commit in self.commits)
        return within * FORWARD_S / (self.num_workers * (self.none_left_s - self.all_ready_s))


def run_on(num_workers: int, folder: Path) -> tuple[Times, float]:
    """The times, and seconds of this process' processor for each unit."""
    # Two more for each worker: what is at work at both ends of the window is lost from the count.
    num_units = num_workers * UNITS_PER_NODE + 2 * num_workers
    job, limits = Job(str(folder / f"store-{num_workers}"), num_units), CollectWorkers(num_workers=num_workers)
    job.writer()
    times, progress = Times(num_workers, num_units), Progress()
    began_s = time.process_time()
    with progress.task("units", total=num_units * SHARD_ROWS) as task:
        Execution(
            name="scaling",
            controller=Controller(range(num_units), num_units, num_workers, limits),
            pool=WorkerPool(job, limits, Sleeper, "collect", calls_at_once=limits.units_in_flight),
            figures=Figures(),
            task=task,
            progress=progress,
            kept=lambda _: "",
            amount=lambda done: done.num_rows,
            observers=(times,),
        ).run()
    return times, (time.process_time() - began_s) / num_units


def efficiency(folder: Path) -> dict[str, Any]:
    import ray
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no path to the benchmarks
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(max(NODES)):
            cluster.add_node(wait=False, **node)
        ray.init(address=cluster.address, namespace="headworks", log_to_driver=False)
        cluster.wait_for_nodes(120)
        found = {number: run_on(number, folder) for number in NODES}
    finally:
        ray.shutdown()
        cluster.shutdown()
    rate = {number: times.efficiency for number, (times, _) in found.items()}
    return {
        "forward_s": FORWARD_S,
        "efficiency": {str(number): round(one, 4) for number, one in rate.items()},
        "efficiency_16_over_1": round(rate[max(NODES)] / rate[1], 4),
        "loop_us_per_unit": round(found[max(NODES)][1] * 1e6, 1),
    }


def controller_us(num_workers: int = 64, num_units: int = 100_000) -> float:
    """Microseconds of decisions for each unit: a commit and the lease that follows."""
    controller = Controller(range(num_units), num_units, num_workers, CollectWorkers())
    controller.start()
    held: list[tuple[int, int]] = []
    began = time.perf_counter()
    for worker in range(num_workers):
        held += [(one.worker, one.unit) for one in controller.apply(WorkerReady(worker)) if isinstance(one, LeaseUnit)]
    while held:
        worker, unit = held.pop(0)
        decisions = controller.apply(UnitCommitted(worker, unit))
        held += [(one.worker, one.unit) for one in decisions if isinstance(one, LeaseUnit)]
    assert controller.num_committed == num_units
    return (time.perf_counter() - began) / num_units * 1e6


@dataclass(frozen=True)
class Table:
    """What planning asks of a token table."""

    url: str
    fingerprint: str = "t" * 64
    specials: dict[str, int] = field(default_factory=dict)
    num_rows: int = TOKENS


def planning(folder: Path) -> dict[str, Any]:
    spec = CollectSpec.model_validate({
        "model": {"path": MODEL}, "hook_points": [HOOK], "output": str(folder / "planned"),
        "tokens": {"corpus": {"format": "text", "urls": ["{stdlib}/pydoc_data/topics.py"]}},
        "storage": {"shard_rows": 65536},
    })  # fmt: skip

    def plan() -> Units:
        (one,) = prepare(spec, Table(str(folder / "tokens")))  # type: ignore[arg-type]
        assert one.num_rows == TOKENS
        controller = Controller(one.units, len(one.units), 64, spec.workers)
        controller.start()
        return one.units

    plan()  # the digest of the model's weights, and imports
    num_units = len(plan())
    done = np.arange(num_units // 2)
    done = np.delete(done, np.linspace(0, len(done) - 1, 1000).astype(int))
    committed = done.tolist()
    return {
        "tokens": TOKENS,
        "units": num_units,
        "new": _cost(plan),
        "half_done": _cost(lambda: Units.missing(num_units, committed)),
    }


def _cost(work: Callable[[], Units]) -> dict[str, float]:
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"seconds": round(seconds, 4), "peak_mib": round(peak / 2**20, 2)}


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            "nodes": efficiency(folder),
            "controller_us_per_unit": round(min(controller_us() for _ in range(3)), 1),
            "planning": planning(folder),
        }
