"""What the controller is told and what it answers: events, decisions, and nothing that acts."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.errors import HeadworksError


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
    """The worker's process is gone, or taken for gone, and with it every lease it held."""

    worker: int
    reason: str
    is_preempted: bool = False
    """Its node has gone: nothing that the worker computed is to blame."""


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
    traceback: str = ""
    """As it was printed where it was raised."""


@dataclass(frozen=True)
class CapacityChanged:
    """The cluster now holds so many workers."""

    num_workers: int


WorkerEvent = WorkerReady | WorkerFailed | WorkerDied | UnitCommitted | UnitFailed
Event = WorkerEvent | CapacityChanged


@dataclass(frozen=True)
class StartWorker:
    """Start a worker; ``replaces`` is the one it stands in for, -1 for a further one."""

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
class SetAside:
    """The unit is not tried again in this run, the rest goes on; nothing to carry out but to say so."""

    unit: int
    errors: int
    """Attempts that ended in an error of the code."""
    deaths: int
    """Attempts in which the worker died."""
    cause: str
    """The last error or death, in one line."""
    traceback: str
    """Of the last error; empty where there was none."""


@dataclass(frozen=True)
class Fail:
    """End the job with this error; what is committed stays."""

    error: HeadworksError


@dataclass(frozen=True)
class Finish:
    """Every unit is committed or set aside."""


Decision = StartWorker | StopWorker | LeaseUnit | RetryUnit | SetAside | Fail | Finish
