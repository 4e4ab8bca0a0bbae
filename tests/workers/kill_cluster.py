"""A cluster of several nodes on this machine that processes are killed on, and the schedules of who dies when."""

from __future__ import annotations

import itertools
import json
import os
import random
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults
from kill_job import MARK, KillJob

from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.sweep import sweep
from schemas.collect import CollectWorkers

ANSWER_TIMEOUT_S = 300.0
NUM_UNITS = 12


@dataclass(frozen=True)
class Fault:
    """``victim`` dies at ``point`` of ``unit``; or the unit meets an error or a hang, which are no deaths."""

    victim: str
    point: str
    unit: int

    @property
    def name(self) -> str:
        return f"{self.victim}.{self.point}.{self.unit}" if self.point else f"{self.victim}.{self.unit}"


def schedule(seed: int) -> list[Fault]:
    """One to four faults of distinct units. Every sixteen seeds in turn begin with each victim at each point."""
    source = random.Random(seed)
    units = source.sample(range(NUM_UNITS), 4)
    first = list(itertools.product(faults.POINTS, faults.VICTIMS))[seed % 16]
    chosen = [Fault(first[1], first[0], units[0])]
    for unit in units[1 : source.randint(1, 4)]:
        victim = source.choices(["worker", "controller", "node", "driver", "error", "hang"], [8, 3, 1, 1, 4, 1])[0]
        point = source.choice(faults.POINTS) if victim in faults.VICTIMS else ""
        chosen.append(Fault(victim, point, unit))
    return chosen


@dataclass
class Driver:
    """The process that drives jobs, started anew where it was killed."""

    address: str
    process: subprocess.Popen[str] | None = None
    num_starts: int = 0

    def run(self, job: KillJob) -> dict[str, Any]:
        """The job's summary; after its driver's death that of the next driver."""
        while True:
            process = self._living()
            facts = {**job.__dict__, "workers": job.workers.model_dump()}
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(facts) + "\n")
                process.stdin.flush()
            if line := _line(process):
                return json.loads(line)
            self.close()

    def _living(self) -> subprocess.Popen[str]:
        if self.process is None:
            command = [sys.executable, str(Path(__file__).with_name("kill_job.py")), self.address]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self.num_starts += 1
            assert _line(self.process) == "ready"
        return self.process

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _line(process: subprocess.Popen[str]) -> str:
    """Its next line that is for us; empty where it died."""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            assert selector.select(ANSWER_TIMEOUT_S), "the driver says nothing"
            line = process.stdout.readline()
            if not line or line.startswith(MARK):
                return line.removeprefix(MARK).rstrip()


@dataclass
class Nodes:
    """The process that has the cluster, see ``kill_nodes``."""

    process: subprocess.Popen[str]
    address: str
    head: int
    """Process of the head's raylet."""

    @classmethod
    def start(cls) -> Nodes:
        command = [sys.executable, str(Path(__file__).with_name("kill_nodes.py"))]
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
        environment.pop("RAY_ADDRESS", None)
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        return cls(process, **json.loads(_line(process)))

    def tell(self, command: str) -> None:
        """``fill NUMBER`` of nodes besides the head, ``add`` one, ``remove`` what was added."""
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        assert _line(self.process) == "{}"

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@dataclass
class KillCluster:
    """A head and further nodes, and a driver."""

    nodes: Nodes
    num_nodes: int
    driver: Driver

    def run(self, job: KillJob, armed: list[Fault]) -> dict[str, Any]:
        """Run the job under the faults to its end, and start anew what nodes are missing then."""
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"keep.{self.nodes.head}").touch()
        for fault in armed:
            (folder / f"armed.{fault.name}").touch()
        summary = self.driver.run(job)
        self.nodes.tell(f"fill {self.num_nodes}")
        return summary


@contextmanager
def kill_cluster(num_nodes: int) -> Iterator[KillCluster]:
    """The head does not die: it keeps what the cluster knows of itself."""
    nodes = Nodes.start()
    driver = Driver(nodes.address)
    try:
        nodes.tell(f"fill {num_nodes}")
        yield KillCluster(nodes, num_nodes, driver)
    finally:
        driver.close()
        nodes.close()


def contents(url: str) -> dict[str, Any]:
    """Key -> bytes; of ledger entries, what does not name the worker and its attempt."""
    objects = Objects(url)
    found: dict[str, Any] = {}
    for key in objects.list(""):
        data = bytes(objects.read(key))
        if key.startswith("ledger/"):
            entry = json.loads(data)
            found[key] = {name: entry[name] for name in ("unit", "start_row", "num_rows", "objects", "statistics")}
        else:
            found[key] = data
    return found


def require_same(url: str, undisturbed: dict[str, Any], num_rows: int) -> None:
    """After a sweep the store has every object of the undisturbed one, byte for byte, and nothing else."""
    objects = Objects(url)
    for key in list(objects.list("leases/")):  # of processes that were killed; they end by themselves in minutes
        objects.delete(key)
    sweep(url, grace_s=0)
    found = contents(url)
    assert found.keys() == undisturbed.keys()
    assert [key for key in found if found[key] != undisturbed[key]] == []
    store = Store.open(url)
    assert store.verify(deep=True) == []
    assert store.tokens().row.tolist() == list(range(num_rows))


def kill_job(folder: Path, store: str = "", *, num_units: int = NUM_UNITS, **workers: Any) -> KillJob:
    """With budgets that a schedule does not use up, and leases that end soon."""
    limits = CollectWorkers(**{"lease_timeout_s": 12, "max_worker_deaths": 40, **workers})
    return KillJob(store or str(folder / "store"), str(folder / "faults"), num_units, limits, pause_s=0.03)


def wait_until(holds: Any, timeout_s: float = 200) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it never came to be"
        time.sleep(0.05)
