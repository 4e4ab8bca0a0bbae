"""Who computes which unit, and what happens when something fails: decisions only, no Ray, no clock, no input or output.

The executor (``workers.collect``) reports what happened as events; ``Controller.apply`` answers with decisions, which
the executor carries out. The controller holds no truth of its own: the ledger says what is committed, and a controller
that is made again from the units that the ledger lacks goes on where the last one stopped.

Two budgets, kept apart: errors of the code are counted for each unit (``max_attempts``), deaths of worker processes
for the whole job (``max_worker_deaths``), since a death says nothing about the unit. An error that the user must mend
(a ``UserError``: full disk, wrong hook point) fails the job at once, for trying again cannot help; a service that does
not answer (``UnreachableError``) may do so the next time and is tried again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeGuard

from schemas.collect import CollectWorkers
from schemas.errors import HeadworksError, JobError, UnreachableError, UserError


@dataclass(frozen=True)
class WorkerReady:
    """The worker has loaded what it needs, a model for example, and waits for units."""

    worker: int


@dataclass(frozen=True)
class WorkerFailed:
    """The worker could not load: an error of the code, not a death."""

    worker: int
    error: BaseException


@dataclass(frozen=True)
class WorkerDied:
    """The worker's process is gone, and with it every lease it held."""

    worker: int
    reason: str


@dataclass(frozen=True)
class UnitCommitted:
    """The ledger has the unit."""

    worker: int
    unit: int


@dataclass(frozen=True)
class UnitFailed:
    """The worker raised while it computed the unit; the worker itself lives."""

    worker: int
    unit: int
    error: BaseException


Event = WorkerReady | WorkerFailed | WorkerDied | UnitCommitted | UnitFailed


@dataclass(frozen=True)
class StartWorker:
    """Start a worker; ``replaces`` is the one it stands in for, -1 for a first one."""

    worker: int
    replaces: int = -1


@dataclass(frozen=True)
class StopWorker:
    """End a worker that is of no further use."""

    worker: int


@dataclass(frozen=True)
class LeaseUnit:
    """Have the worker compute the unit; ``attempt`` counts from 0."""

    worker: int
    unit: int
    attempt: int


@dataclass(frozen=True)
class RetryUnit:
    """The unit is back in the queue; nothing to carry out but to say so."""

    unit: int
    cause: str


@dataclass(frozen=True)
class Fail:
    """End the job with this error; what is committed stays."""

    error: HeadworksError


@dataclass(frozen=True)
class Finish:
    """Every unit is committed."""


Decision = StartWorker | StopWorker | LeaseUnit | RetryUnit | Fail | Finish


@dataclass
class _Returned:
    """A unit that came back, and the worker that should not be the next to try it (-1: any may)."""

    unit: int
    avoid: int


@dataclass
class _History:
    """What befell one unit, kept only for units that came back."""

    attempts: int = 0
    errors: int = 0
    deaths: int = 0


@dataclass
class _Worker:
    """``units`` in the order of their leases: the first is being computed, the others wait."""

    ready: bool = False
    units: list[int] = field(default_factory=list)


class Controller:
    """The leases of one pass over a store. Final; every method is deterministic."""

    def __init__(
        self,
        units: Iterable[int],
        num_units: int,
        num_workers: int,
        limits: CollectWorkers,
        *,
        memory_fields: str = "batch_tokens, storage.shard_rows",
    ) -> None:
        """``units`` are the ``num_units`` that the ledger lacks; they are consumed lazily, each once.

        ``memory_fields``: what the user can lower where workers are killed for their memory.
        """
        self._memory_fields = memory_fields
        self._fresh: Iterator[int] = iter(units)
        self._num_fresh = num_units
        self._num_workers = min(num_workers, num_units)
        self._limits = limits
        self._returned: list[_Returned] = []
        self._histories: dict[int, _History] = {}
        self._workers: dict[int, _Worker] = {}
        self._next_worker = 0
        self._load_errors = 0
        self.num_deaths = 0
        self.num_committed = 0
        self.is_over = False

    def start(self) -> list[Decision]:
        """The first decisions: start the workers, or finish where nothing is missing."""
        if not self._num_fresh:
            self.is_over = True
            return [Finish()]
        return [self._start_worker() for _ in range(self._num_workers)]

    def apply(self, event: Event) -> list[Decision]:
        """What to do about ``event``. Events of workers that are gone, and any after the end, change nothing."""
        worker = self._workers.get(event.worker)
        if self.is_over or worker is None:
            return []
        decisions = self._react(worker, event)
        return decisions if self.is_over else decisions + self._leases()

    def _react(self, worker: _Worker, event: Event) -> list[Decision]:
        match event:
            case WorkerReady():
                worker.ready = True
                return []
            case UnitCommitted(unit=unit):
                return self._committed(worker, unit)
            case UnitFailed():
                return self._failed(worker, event)
            case WorkerFailed():
                return self._could_not_load(event)
            case WorkerDied():
                return self._died(worker, event)

    def _committed(self, worker: _Worker, unit: int) -> list[Decision]:
        worker.units.remove(unit)
        self._histories.pop(unit, None)
        self.num_committed += 1
        if self._num_unleased or any(other.units for other in self._workers.values()):
            return []
        self.is_over = True
        return [Finish()]

    def _failed(self, worker: _Worker, event: UnitFailed) -> list[Decision]:
        worker.units.remove(event.unit)
        if _is_final(event.error):
            return self._fail(event.error)
        history = self._histories.setdefault(event.unit, _History())
        history.errors += 1
        if history.errors >= self._limits.max_attempts:
            return self._fail(
                JobError(
                    f"unit {event.unit} failed {history.errors} times (workers.max_attempts); the last error was "
                    f"{_described(event.error)}. What was committed is kept; mend the cause and run again."
                )
            )
        self._returned.append(_Returned(event.unit, avoid=event.worker))
        return [RetryUnit(event.unit, _described(event.error))]

    def _could_not_load(self, event: WorkerFailed) -> list[Decision]:
        del self._workers[event.worker]
        if _is_final(event.error):
            return self._fail(event.error)
        self._load_errors += 1
        if self._load_errors >= self._limits.max_attempts:
            return self._fail(
                JobError(
                    f"a worker could not be made ready {self._load_errors} times (workers.max_attempts); the last "
                    f"error was {_described(event.error)}. No unit was lost; mend the cause and run again."
                )
            )
        return [StopWorker(event.worker), *self._replacement(event.worker)]

    def _died(self, worker: _Worker, event: WorkerDied) -> list[Decision]:
        del self._workers[event.worker]
        self.num_deaths += 1
        decisions: list[Decision] = []
        for place, unit in enumerate(worker.units):
            # Only the first was being computed; the waiting ones are innocent of the death.
            self._histories.setdefault(unit, _History()).deaths += place == 0
            self._returned.append(_Returned(unit, avoid=-1))
            decisions.append(RetryUnit(unit, f"worker {event.worker} died: {event.reason}"))
        if self.num_deaths > self._limits.max_worker_deaths:
            return self._fail(JobError(self._deaths_message(event, worker.units)))
        return [*decisions, *self._replacement(event.worker)]

    def _deaths_message(self, event: WorkerDied, units: list[int]) -> str:
        tally = Counter({unit: history.deaths for unit, history in self._histories.items() if history.deaths})
        suspects = ", ".join(f"unit {unit} during {deaths} of them" for unit, deaths in tally.most_common(3))
        busy = f"it held units {units}" if units else "it held no unit"
        return (
            f"{self.num_deaths} workers died (workers.max_worker_deaths is {self._limits.max_worker_deaths}); the last "
            f"was worker {event.worker}, {busy}: {event.reason}\n"
            f"Computed at the time: {suspects or 'no unit, the workers died while they loaded'}. A process "
            f"that dies without an error was most often killed for its memory: lower {self._memory_fields} "
            "or workers.num_workers. What was committed is kept; run again to go on."
        )

    def _fail(self, error: HeadworksError) -> list[Decision]:
        self.is_over = True
        return [Fail(error)]

    def _start_worker(self, replaces: int = -1) -> StartWorker:
        worker = self._next_worker
        self._next_worker += 1
        self._workers[worker] = _Worker()
        return StartWorker(worker, replaces)

    def _replacement(self, gone: int) -> list[Decision]:
        # Leases of others may yet come back, but then their own replacement is decided on.
        return [self._start_worker(gone)] if self._num_unleased else []

    @property
    def _num_unleased(self) -> int:
        return self._num_fresh + len(self._returned)

    def _leases(self) -> list[Decision]:
        """Fill the workers breadth first: every worker computes before any has a unit waiting."""
        leases: list[Decision] = []
        for depth in range(1, self._limits.units_in_flight + 1):
            for name, worker in self._workers.items():
                # Near the end nobody hoards: a waiting unit could not move to a worker that falls idle.
                wanted = depth == 1 or self._num_unleased > len(self._workers)
                if worker.ready and len(worker.units) < depth and wanted:
                    leases.extend(self._lease(name, worker))
        return leases

    def _lease(self, name: int, worker: _Worker) -> list[Decision]:
        unit = self._take(name)
        if unit is None:
            return []
        worker.units.append(unit)
        history = self._histories.get(unit)
        if history is None:
            return [LeaseUnit(name, unit, 0)]
        history.attempts += 1
        return [LeaseUnit(name, unit, history.attempts)]

    def _take(self, name: int) -> int | None:
        """Units that came back go first; one that raised goes to another worker, as long as there is another."""
        is_alone = sum(worker.ready for worker in self._workers.values()) == 1
        for place, returned in enumerate(self._returned):
            if returned.avoid != name or is_alone:
                del self._returned[place]
                return returned.unit
        if not self._num_fresh:
            return None
        self._num_fresh -= 1
        return next(self._fresh)


def _is_final(error: BaseException) -> TypeGuard[UserError]:
    return isinstance(error, UserError) and not isinstance(error, UnreachableError)


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
