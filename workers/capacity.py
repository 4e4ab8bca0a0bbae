"""How many replicas the cluster holds, now and while nodes come and go."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from schemas.collect import CollectWorkers
from schemas.errors import ResourceError
from workers.cluster import living_nodes

LOOK_INTERVAL_S = 2.0


def num_workers(limits: CollectWorkers) -> int:
    """Model replicas to start: as the spec says, else as many as the cluster holds.

    Raises:
        ResourceError: the cluster cannot hold a single one.
    """
    if limits.num_workers:
        return limits.num_workers
    number = fitting(limits)
    if number < 1:
        have = [node["Resources"] for node in living_nodes()]
        cpus = max((one.get("CPU", 0.0) for one in have), default=0.0)
        gpus = max((one.get("GPU", 0.0) for one in have), default=0.0)
        raise ResourceError(
            f"one worker needs {limits.cpus_per_worker:g} CPUs and {limits.gpus_per_worker:g} GPUs for each of its "
            f"processes, the nodes of the cluster have at most {cpus:g} and {gpus:g}. Lower workers.cpus_per_worker or "
            "workers.gpus_per_worker, or set workers.num_workers to wait for a cluster that grows."
        )
    return number


def fitting(limits: CollectWorkers) -> int:
    """Replicas that the living nodes hold together, whatever else they run; a process is on one node."""
    processes = max(1, limits.processes_per_replica)
    on_nodes = [_processes(node["Resources"], limits) for node in living_nodes()]
    if limits.placement == "tensor":  # a group is on one node
        return sum(one // processes for one in on_nodes)
    return sum(on_nodes) // processes


def _processes(resources: dict[str, float], limits: CollectWorkers) -> int:
    fits = [resources.get("CPU", 0.0) / limits.cpus_per_worker]
    if limits.gpus_per_worker:
        fits.append(resources.get("GPU", 0.0) / limits.gpus_per_worker)
    return int(min(fits) + 1e-6)  # thirds of a GPU add up to it


@dataclass
class Capacity:
    """Watches a cluster that may grow and shrink; one with a fixed number of workers never changes."""

    limits: CollectWorkers
    clock: Callable[[], float] = time.monotonic
    _known: int = -1
    _looked_s: float = 0.0

    def changed(self) -> int | None:
        """The new number of workers that fit, where it is another than at the last call; looks now and then only."""
        now_s = self.clock()
        if self.limits.num_workers or (self._known >= 0 and now_s - self._looked_s < LOOK_INTERVAL_S):
            return None
        self._looked_s = now_s
        before, self._known = self._known, fitting(self.limits)
        return self._known if before >= 0 and before != self._known else None
