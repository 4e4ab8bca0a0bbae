"""What a job of units tells the outside while it runs: metrics for Prometheus, events for the log beside the summary.

Lives in the process that hears of every unit, the one with the pool. It is told what happened and what was decided, and
changes nothing: a job without it stores the same bytes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from workers import metrics
from workers.collector import Receipt
from workers.decisions import (
    Decision,
    Event,
    Fail,
    Finish,
    LeaseUnit,
    RetryUnit,
    SetAside,
    StartWorker,
    StopWorker,
    UnitCommitted,
    UnitFailed,
    WorkerDied,
    WorkerFailed,
    WorkerReady,
)
from workers.events import EventLog, described
from workers.pool import Loaded

UTILISATION_UNITS = 32
"""FLOP utilisation is that of so many units, or of fewer as long as there are not so many."""

_STALL = "stall_"
_TOTAL = "total"


@dataclass
class _Replica:
    """A replica that has loaded."""

    host: str
    peak_flop_per_s: float


@dataclass
class Telemetry:
    """Of one pass over one store. Final; calls cost microseconds and never fail the job."""

    job: str
    store: str
    num_units: int
    """What the pass has to do."""
    events: EventLog | None = None
    clock: Callable[[], float] = time.monotonic
    _loading: set[int] = field(default_factory=set)
    _ready: dict[int, _Replica] = field(default_factory=dict)
    _leased: dict[int, int] = field(default_factory=dict)
    """unit -> the worker that has it."""
    _num_done: int = 0
    _set_aside: set[int] = field(default_factory=set)
    _causes: dict[int, str] = field(default_factory=dict)
    """unit -> why it came back last, in a word."""
    _flop_per_token: float = 0.0
    _flop: float = 0.0
    _commits: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=UTILISATION_UNITS + 1))
    """When, and how many operations there were by then."""

    def note(self, event: Event, answer: object = None) -> None:
        """What the pool has told, with the answer of a call that succeeded."""
        match event, answer:
            case WorkerReady(worker=worker), Loaded():
                self._worker_ready(worker, answer)
            case UnitCommitted(worker=worker, unit=unit), _:
                self._unit_committed(worker, unit, answer)
            case UnitFailed(worker=worker, unit=unit, error=error, traceback=trace), _:
                self._leased.pop(unit, None)
                self._causes[unit] = type(error).__name__
                facts = described(error, trace)
                self._emit("unit.failed", unit=unit, worker=worker, host=self._host(worker), **facts)
            case WorkerFailed(worker=worker, error=error), _:
                self._emit("worker.failed", worker=worker, **described(error))
                self._remove(worker)
            case WorkerDied(worker=worker, reason=reason, is_preempted=is_preempted), _:
                self._worker_died(worker, reason, is_preempted)
        self._show()

    def decided(self, decision: Decision) -> None:
        """What the controller has answered."""
        match decision:
            case StartWorker(worker=worker):
                self._loading.add(worker)
                self._emit("worker.started", worker=worker)
            case StopWorker(worker=worker):
                self._emit("worker.stopped", worker=worker, host=self._host(worker))
                self._remove(worker)
            case LeaseUnit(worker=worker, unit=unit):
                self._leased[unit] = worker
            case RetryUnit(unit=unit, cause=reason):
                cause = self._causes.get(unit, "")
                metrics.RETRIES.add(1, **self._tags, cause=cause)
                self._emit("unit.retried", unit=unit, cause=cause, reason=reason)
            case SetAside(unit=unit, errors=errors, deaths=deaths, cause=reason):
                self._set_aside.add(unit)
                self._emit("unit.set_aside", unit=unit, errors=errors, deaths=deaths, reason=reason)
            case Fail() | Finish():
                pass  # the job's own end says it
        self._show()

    def ended(self) -> None:
        """The pass is over, in whatever way: gauges of what no longer is go to 0."""
        self._loading.clear()
        self._ready.clear()
        self._leased.clear()
        self._commits.clear()
        self._show()
        if self.events is not None:
            self.events.flush()

    @property
    def utilisation(self) -> float:
        """Model FLOP utilisation of the last units; 0 where the peak or the operations are not known."""
        if len(self._commits) < 2 or self._peak <= 0:
            return 0.0
        (begin, before), (end, after) = self._commits[0], self._commits[-1]
        return (after - before) / max(end - begin, 1e-9) / self._peak

    @property
    def _peak(self) -> float:
        return sum(replica.peak_flop_per_s for replica in self._ready.values())

    @property
    def _tags(self) -> dict[str, str]:
        return {"job_name": self.job, "store": self.store}

    def _worker_ready(self, worker: int, loaded: Loaded) -> None:
        self._loading.discard(worker)
        self._ready[worker] = _Replica(loaded.host, loaded.peak_flop_per_s)
        self._flop_per_token = loaded.flop_per_token
        if not self._commits:
            self._commits.append((self.clock(), 0.0))
        metrics.LOAD_SECONDS.observe(loaded.seconds, **self._tags)
        self._emit(
            "worker.ready",
            worker=worker,
            host=loaded.host,
            pid=loaded.pid,
            seconds=round(loaded.seconds, 6),
            flop_per_token=loaded.flop_per_token,
            peak_flop_per_s=loaded.peak_flop_per_s,
            peak_source=loaded.peak_source,
        )

    def _worker_died(self, worker: int, reason: str, is_preempted: bool) -> None:
        cause = "preempted" if is_preempted else "worker died"
        units = [unit for unit, owner in self._leased.items() if owner == worker]
        self._causes.update(dict.fromkeys(units, cause))
        metrics.WORKER_DEATHS.add(1, **self._tags, cause=cause)
        self._emit("worker.died", worker=worker, host=self._host(worker), units=units, cause=cause, reason=reason)
        self._remove(worker)

    def _unit_committed(self, worker: int, unit: int, answer: object) -> None:
        self._leased.pop(unit, None)
        self._causes.pop(unit, None)
        self._num_done += 1
        metrics.UNITS.add(1, **self._tags)
        facts: dict[str, Any] = {"unit": unit, "worker": worker, "host": self._host(worker)}
        if isinstance(answer, Receipt):
            self._count(answer)
            facts |= {
                "attempt": answer.attempt,
                "rows": answer.num_rows,
                "bytes": answer.size_bytes,
                "seconds": {name: round(value, 6) for name, value in answer.seconds.items()},
            }
        self._emit("unit.committed", **facts)

    def _count(self, receipt: Receipt) -> None:
        tags = self._tags
        metrics.TOKENS.add(receipt.num_rows, **tags)
        metrics.BYTES.add(receipt.size_bytes, **tags)
        for name, value in receipt.seconds.items():
            if name == _TOTAL:
                metrics.UNIT_SECONDS.observe(value, **tags)
            elif name.startswith(_STALL):
                metrics.STALL_SECONDS.add(value, **tags, stage=name.removeprefix(_STALL))
            else:
                metrics.STAGE_SECONDS.add(value, **tags, stage=name)
        self._count_flop(receipt.num_rows)

    def _count_flop(self, rows: int) -> None:
        flop = rows * self._flop_per_token
        self._flop += flop
        self._commits.append((self.clock(), self._flop))
        metrics.MODEL_FLOP.add(flop, **self._tags)

    def _remove(self, worker: int) -> None:
        self._loading.discard(worker)
        self._ready.pop(worker, None)
        for unit in [unit for unit, owner in self._leased.items() if owner == worker]:
            del self._leased[unit]

    def _host(self, worker: int) -> str:
        replica = self._ready.get(worker)
        return replica.host if replica else ""

    def _show(self) -> None:
        """Set the gauges to how things stand."""
        tags = self._tags
        waiting = self.num_units - self._num_done - len(self._leased) - len(self._set_aside)
        metrics.QUEUE.set(waiting, **tags, state="waiting")
        metrics.QUEUE.set(len(self._leased), **tags, state="leased")
        metrics.QUEUE.set(self._num_done, **tags, state="done")
        metrics.QUEUE.set(len(self._set_aside), **tags, state="set_aside")
        metrics.WORKERS.set(len(self._loading), **tags, state="loading")
        metrics.WORKERS.set(len(self._ready), **tags, state="ready")
        metrics.PEAK_FLOP_PER_S.set(self._peak, **tags)
        metrics.FLOP_UTILISATION.set(self.utilisation, **tags)

    def _emit(self, event: str, **facts: Any) -> None:
        if self.events is not None:
            self.events.emit(event, store=self.store, **facts)
