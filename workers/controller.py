"""Who computes which unit, and what happens when something fails: decisions only, no Ray, no clock, no input or output.

The executor (``workers.execution``) reports what happened as events; ``Controller.apply`` answers with decisions, which
the executor carries out. The controller holds no truth of its own: the ledger says what is committed, and a controller
that is made again from the units that the ledger lacks goes on where the last one stopped.

Budgets, each for what it says something about:

* Errors of the code are counted for each unit (``max_attempts``). A unit that has used them up is set aside, and the
  rest goes on; too many of those (``max_set_aside``) end the job.
* Deaths of worker processes are counted for the units that the worker had (``max_unit_deaths``: such a unit is set
  aside as well) and for the whole job (``max_worker_deaths``). Those of a unit that is set aside are taken off the
  job's, unless nothing was committed yet: then the units are not to blame.
* Workers whose node has gone (``max_preemptions``) are counted against nothing else.

A unit that came back with blame is tried again at once, for readers may wait for it, but alone: where it fails again,
no other unit was there.

An error that the user must mend (a ``UserError``: full disk, wrong hook point) fails the job at once, for trying again
cannot help; a service that does not answer (``UnreachableError``) may do so the next time and is tried again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeGuard

from schemas.collect import CollectWorkers
from schemas.errors import HeadworksError, JobError, UnreachableError, UserError
from workers.decisions import (
    CapacityChanged,
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
    WorkerEvent,
    WorkerFailed,
    WorkerReady,
)


@dataclass
class _History:
    """What befell one unit, kept only for units that came back."""

    attempts: int = 0
    errors: int = 0
    deaths: int = 0
    cause: str = ""
    traceback: str = ""
    avoid: int = -1
    """The worker that should not be the next to try it; -1: any may."""

    @property
    def is_suspect(self) -> bool:
        return self.errors + self.deaths > 0


@dataclass
class _Worker:
    """``units`` in the order of their leases."""

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

        ``num_workers``: how many there shall be, as far as there is work for them; ``CapacityChanged`` tells another
        number. ``memory_fields``: what the user can lower where workers are killed for their memory.
        """
        self._memory_fields = memory_fields
        self._fresh: Iterator[int] = iter(units)
        self._num_fresh = num_units
        self._capacity = num_workers
        self._limits = limits
        self._returned: deque[int] = deque()
        self._histories: dict[int, _History] = {}
        self._workers: dict[int, _Worker] = {}
        self._num_loading = 0
        self._num_leased = 0
        self._next_worker = 0
        self._load_errors = 0
        self._charged_deaths = 0
        self.num_deaths = 0
        self.num_preemptions = 0
        """Workers whose node went away; not among the deaths."""
        self.num_committed = 0
        self.set_aside: list[SetAside] = []
        self.is_over = False

    def start(self) -> list[Decision]:
        """The first decisions: start the workers, or finish where nothing is missing."""
        return self._finished() or self._resized()

    def apply(self, event: Event) -> list[Decision]:
        """What to do about ``event``. Events of workers that are gone, and any after the end, change nothing."""
        if self.is_over:
            return []
        if isinstance(event, CapacityChanged):
            self._capacity = max(1, event.num_workers)
            return self._resized()
        worker = self._workers.get(event.worker)
        if worker is None:
            return []
        decisions = self._react(worker, event)
        if any(isinstance(decision, Fail) for decision in decisions):
            return decisions
        if finish := self._finished():
            return decisions + finish
        # Room is only where a worker has just become free, unless units came back for anybody to take.
        free = [event.worker] if isinstance(event, WorkerReady | UnitCommitted) else list(self._workers)
        return decisions + self._leases(free)

    def _react(self, worker: _Worker, event: WorkerEvent) -> list[Decision]:
        match event:
            case WorkerReady():
                worker.ready = True
                self._num_loading -= 1
                return []
            case UnitCommitted(unit=unit):
                self._take_back(worker, unit)
                self._histories.pop(unit, None)
                self.num_committed += 1
                return []
            case UnitFailed():
                return self._failed(worker, event)
            case WorkerFailed():
                return self._could_not_load(event)
            case WorkerDied():
                return self._died(event)

    def _failed(self, worker: _Worker, event: UnitFailed) -> list[Decision]:
        self._take_back(worker, event.unit)
        if _is_final(event.error):
            return self._fail(event.error)
        history = self._histories.setdefault(event.unit, _History())
        history.errors += 1
        history.cause, history.traceback, history.avoid = described(event.error), event.traceback, event.worker
        if history.errors >= self._limits.max_attempts:
            return self._put_aside(event.unit)
        return self._returns(event.unit, history.cause)

    def _could_not_load(self, event: WorkerFailed) -> list[Decision]:
        self._forget(event.worker)
        if _is_final(event.error):
            return self._fail(event.error)
        self._load_errors += 1
        if self._load_errors >= self._limits.max_attempts:
            return self._fail(
                JobError(
                    f"a worker could not be made ready {self._load_errors} times (workers.max_attempts); the last "
                    f"error was {described(event.error)}. No unit was lost; mend the cause and run again."
                )
            )
        return [StopWorker(event.worker), *self._resized(event.worker)]

    def _died(self, event: WorkerDied) -> list[Decision]:
        units = self._forget(event.worker)
        decisions: list[Decision] = []
        for unit in units:
            history = self._histories.setdefault(unit, _History())
            cause = f"worker {event.worker} died: {event.reason}"
            if not event.is_preempted:
                history.deaths += 1
                history.cause = cause
            if history.deaths >= self._limits.max_unit_deaths:
                decisions.extend(self._put_aside(unit))
                if self.is_over:
                    return decisions
            else:
                decisions.extend(self._returns(unit, cause))
        if exhausted := self._count_death(event, units):
            return [*decisions, *self._fail(exhausted)]
        return [*decisions, *self._resized(event.worker)]

    def _count_death(self, event: WorkerDied, units: list[int]) -> JobError | None:
        """The end of the job where this was one death too many."""
        if event.is_preempted:
            self.num_preemptions += 1
            if self.num_preemptions <= self._limits.max_preemptions:
                return None
            return JobError(
                f"{self.num_preemptions} workers were lost with their nodes (workers.max_preemptions is "
                f"{self._limits.max_preemptions}); the last was worker {event.worker}: {event.reason}. What was "
                "committed is kept; run again to go on."
            )
        self.num_deaths += 1
        self._charged_deaths += 1
        if self._charged_deaths <= self._limits.max_worker_deaths:
            return None
        return JobError(self._deaths_message(event, units))

    def _deaths_message(self, event: WorkerDied, units: list[int]) -> str:
        tally = Counter({unit: history.deaths for unit, history in self._histories.items() if history.deaths})
        tally.update({one.unit: one.deaths for one in self.set_aside if one.deaths})
        suspects = ", ".join(f"unit {unit} during {deaths} of them" for unit, deaths in tally.most_common(3))
        busy = f"it held units {units}" if units else "it held no unit"
        return (
            f"{self.num_deaths} workers died (workers.max_worker_deaths is {self._limits.max_worker_deaths}); the last "
            f"was worker {event.worker}, {busy}: {event.reason}\n"
            f"Computed at the time: {suspects or 'no unit, the workers died while they loaded'}. A process "
            f"that dies without an error was most often killed for its memory: lower {self._memory_fields} "
            "or workers.num_workers. What was committed is kept; run again to go on."
        )

    def _returns(self, unit: int, cause: str) -> list[Decision]:
        self._returned.append(unit)
        return [RetryUnit(unit, cause)]

    def _put_aside(self, unit: int) -> list[Decision]:
        history = self._histories.pop(unit)
        if self.num_committed:
            self._charged_deaths -= history.deaths
        self.set_aside.append(SetAside(unit, history.errors, history.deaths, history.cause, history.traceback))
        if len(self.set_aside) <= self._limits.max_set_aside:
            return [self.set_aside[-1]]
        return [self.set_aside[-1], *self._fail(JobError(self._set_aside_message()))]

    def _set_aside_message(self) -> str:
        last = self.set_aside[-1]
        tries = f"{last.errors} times" if last.errors else f"with {last.deaths} workers, which died"
        others = f"{len(self.set_aside)} units failed for good (workers.max_set_aside is {self._limits.max_set_aside})"
        return (
            f"unit {last.unit} failed {tries} (workers.max_attempts, workers.max_unit_deaths), and so {others}: "
            f"{[one.unit for one in self.set_aside][:10]}; the last error was {last.cause}. What was committed is "
            "kept; mend the cause and run again."
        )

    def _fail(self, error: HeadworksError) -> list[Decision]:
        self.is_over = True
        return [Fail(error)]

    def _finished(self) -> list[Decision]:
        if self._num_unleased or self._num_leased:
            return []
        self.is_over = True
        return [Finish()]

    def _resized(self, gone: int = -1) -> list[Decision]:
        """As many workers as fit and find work; the first that is started stands in for ``gone``.

        Those that compute are left alone: where capacity falls, they died with their nodes, or there is room after all.
        """
        decisions: list[Decision] = []
        loading = [name for name, worker in self._workers.items() if not worker.ready]
        surplus = min(len(self._workers) - self._capacity, len(loading))
        for name in loading[len(loading) - max(0, surplus) :]:
            self._forget(name)
            decisions.append(StopWorker(name))
        while len(self._workers) < self._capacity and self._num_unleased > self._num_loading:
            decisions.append(self._start_worker(gone))
            gone = -1
        return decisions

    def _start_worker(self, replaces: int) -> StartWorker:
        worker = self._next_worker
        self._next_worker += 1
        self._num_loading += 1
        self._workers[worker] = _Worker()
        return StartWorker(worker, replaces)

    def _forget(self, name: int) -> list[int]:
        """The units that the worker held."""
        worker = self._workers.pop(name)
        self._num_loading -= not worker.ready
        self._num_leased -= len(worker.units)
        return worker.units

    def _take_back(self, worker: _Worker, unit: int) -> None:
        worker.units.remove(unit)
        self._num_leased -= 1

    @property
    def _num_unleased(self) -> int:
        return self._num_fresh + len(self._returned)

    def _leases(self, free: list[int]) -> list[Decision]:
        """Fill the workers breadth first: every worker computes before any has a unit waiting."""
        leases: list[Decision] = []
        for depth in range(1, self._limits.units_in_flight + 1):
            for name in free:
                worker = self._workers[name]
                # Near the end nobody hoards: a waiting unit could not move to a worker that falls idle.
                wanted = depth == 1 or self._num_unleased > len(self._workers)
                if wanted and worker.ready and len(worker.units) < depth:
                    leases.extend(self._lease(name, worker))
        return leases

    def _lease(self, name: int, worker: _Worker) -> list[Decision]:
        unit = self._take(name, worker)
        if unit is None:
            return []
        worker.units.append(unit)
        self._num_leased += 1
        history = self._histories.get(unit)
        if history is None:
            return [LeaseUnit(name, unit, 0)]
        history.attempts += 1
        return [LeaseUnit(name, unit, history.attempts)]

    def _take(self, name: int, worker: _Worker) -> int | None:
        """Units that came back go first; one that raised goes to another worker, if there is one; suspects go alone."""
        if any(self._is_suspect(unit) for unit in worker.units):
            return None
        is_only_one = len(self._workers) - self._num_loading == 1
        for place, unit in enumerate(self._returned):
            if is_only_one or self._histories[unit].avoid != name:
                if worker.units and self._is_suspect(unit):
                    return None  # it is this worker's next, as soon as it has no other
                del self._returned[place]
                return unit
        if not self._num_fresh:
            return None
        self._num_fresh -= 1
        return next(self._fresh)

    def _is_suspect(self, unit: int) -> bool:
        history = self._histories.get(unit)
        return history is not None and history.is_suspect


def described(error: BaseException) -> str:
    """Type and message."""
    return f"{type(error).__name__}: {error}"


def _is_final(error: BaseException) -> TypeGuard[UserError]:
    return isinstance(error, UserError) and not isinstance(error, UnreachableError)
