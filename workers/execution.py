"""Carrying out a controller's decisions with a pool: the loop of every job whose work is cut into units."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from schemas.errors import UserError
from workers.controller import Controller
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
    WorkerFailed,
    WorkerReady,
)
from workers.pool import POLL_INTERVAL_S, WorkerPool
from workers.progress import Progress, Task

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Is told everything and changes nothing."""

    def note(self, event: Event, answer: Any = None) -> None:
        """What happened, with the answer of a call that succeeded."""

    def decided(self, decision: Decision) -> None:
        """What is about to be carried out."""


class Done(Protocol):
    """What a worker returns for a unit."""

    @property
    def num_rows(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...


@dataclass
class Figures:
    """What one run of a job did, over all its passes, for the summary."""

    rows: int = 0
    size_bytes: int = 0
    units: int = 0
    retries: int = 0
    deaths: int = 0
    preemptions: int = 0
    load_seconds: float = 0.0
    work_seconds: float = 0.0


@dataclass
class Execution:
    """One pass. Final; runs in the process that has the pool."""

    name: str
    """Of the job, for messages."""
    controller: Controller
    pool: WorkerPool
    figures: Figures
    task: Task
    progress: Progress
    kept: Callable[[int], str]
    """What to say where the pass is stopped after so many commits; empty: nothing."""
    amount: Callable[[Done], int]
    """What a unit adds to the display of progress."""
    first_ready: Callable[[Any], None] = lambda _: None
    """Called with what the first worker answers that is ready; may refuse to go on."""
    unit: str = "unit"
    observers: Sequence[Observer] = ()
    _started_s: float = field(default_factory=time.perf_counter)
    _ready_s: float = 0.0

    def run(self) -> None:
        """Until every unit is committed or set aside; the workers are gone when this returns, in whatever way.

        Raises:
            HeadworksError: the controller's, or what ``first_ready`` raised.
        """
        try:
            decisions = self.controller.start()
            while not self._carry_out(decisions):
                decisions = self._next_decisions()
        except BaseException:
            if said := self.kept(self.controller.num_committed):
                self.progress.note(said)
            raise
        finally:
            self.pool.shutdown()
            self.figures.deaths += self.controller.num_deaths
            self.figures.preemptions += self.controller.num_preemptions
            if self._ready_s:
                self.figures.work_seconds += time.perf_counter() - self._ready_s

    def _next_decisions(self) -> list[Decision]:
        self.task.tick()
        decisions: list[Decision] = []
        for event, answer in self.pool.wait(POLL_INTERVAL_S):
            self._note(event, answer)
            decisions.extend(self.controller.apply(event))
        return decisions

    def _note(self, event: Event, answer: Any) -> None:
        for observer in self.observers:
            observer.note(event, answer)
        match event:
            case WorkerReady():
                if not self._ready_s:
                    self.first_ready(answer)
                    self._ready_s = time.perf_counter()
                    self.figures.load_seconds += self._ready_s - self._started_s
                    self.task.restart_clock()
            case UnitCommitted():
                self.figures.units += 1
                self.figures.rows += answer.num_rows
                self.figures.size_bytes += answer.size_bytes
                self.task.advance(self.amount(answer), answer.size_bytes)
            case WorkerFailed(error=UserError()) | UnitFailed(error=UserError()):
                pass  # ends the job, whose message it is
            case CapacityChanged(num_workers=number):
                self.progress.note(f"{self.name}: the cluster has room for {number} workers now")
            case _:
                _log.warning("%s.%s %s", self.name, type(event).__name__, event)

    def _carry_out(self, decisions: list[Decision]) -> bool:
        """True when the pass is finished. Raises the error of a ``Fail``."""
        for decision in decisions:
            for observer in self.observers:
                observer.decided(decision)
            match decision:
                case StartWorker(worker=worker):
                    self.pool.start(worker)
                case StopWorker(worker=worker):
                    self.pool.stop(worker)
                case LeaseUnit(worker=worker, unit=unit, attempt=attempt):
                    self.pool.lease(worker, unit, attempt)
                case RetryUnit(unit=unit, cause=cause):
                    self.figures.retries += 1
                    self.progress.note(f"{self.name}: {self.unit} {unit} is tried again: {cause}")
                case SetAside(unit=unit, cause=cause):
                    self.progress.note(f"{self.name}: {self.unit} {unit} is set aside, the rest goes on: {cause}")
                case Fail(error=error):
                    raise error
                case Finish():
                    return True
        return False
