"""The states of a job of the service, and what may follow what: pure functions over one small record.

    ACCEPTED ---> PENDING ---> RUNNING ---> SUCCEEDED | FAILED | STOPPED
       |  ^          |            |
       v  |          +------------+-------> LOST            the cluster no longer knows it
     WAITING                                                the cluster does not answer, or refused it; tried again

A job that may have reached a cluster whose answer was lost (``Delivery.SENT``) is handed over again only to that same
cluster: its id is the submission id there, so the second time is refused and not run. Once the cluster has been
replaced nobody can tell whether the job ran, so it is LOST, and a person decides.

Nothing follows an end: events that come late change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

MAX_REFUSALS = 5
"""So often the cluster may answer and not take the job; then it has failed."""
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0


class State(StrEnum):
    """Of a job; those that Ray knows have Ray's names."""

    ACCEPTED = "ACCEPTED"
    """Committed to the database, not yet handed to its cluster."""
    WAITING = "WAITING"
    """The cluster does not answer, or did not take it; it is tried again, and the message says why."""
    PENDING = "PENDING"
    """The cluster has it and has not begun."""
    RUNNING = "RUNNING"
    """It runs."""
    SUCCEEDED = "SUCCEEDED"
    """It ended well."""
    FAILED = "FAILED"
    """It ended badly, or the cluster never took it."""
    STOPPED = "STOPPED"
    """Somebody stopped it; what it had committed is kept."""
    LOST = "LOST"
    """The cluster does not know it any more, most often since it was replaced. It can be retried."""

    @property
    def has_ended(self) -> bool:
        """Nothing more will happen."""
        return self in ENDED


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.STOPPED, State.LOST})
ALIVE = frozenset(State) - ENDED
UNDELIVERED = frozenset({State.ACCEPTED, State.WAITING})


class Delivery(StrEnum):
    """What is known of the way to the cluster."""

    NONE = "none"
    """Never sent: no cluster can have it."""
    SENT = "sent"
    """Perhaps the cluster has it."""
    CONFIRMED = "confirmed"
    """The cluster has, or had, it."""


@dataclass(frozen=True)
class Progress:
    """How far a job is. Times are Unix seconds."""

    state: State = State.ACCEPTED
    delivery: Delivery = Delivery.NONE
    session: str = ""
    """The cluster, from one start to the next, that it was sent to."""
    stop_asked: bool = False
    refusals: int = 0
    next_try_s: float = 0.0
    message: str = ""
    """Why it waits, or what the cluster says of it."""
    started_s: float | None = None
    ended_s: float | None = None


@dataclass(frozen=True)
class Seen:
    """A job as its cluster describes it."""

    state: State
    message: str
    started_s: float | None
    ended_s: float | None


def sending(progress: Progress, session: str) -> Progress:
    """About to be handed over; to be committed before it is."""
    return replace(progress, delivery=Delivery.SENT, session=session)


def confirmed(progress: Progress) -> Progress:
    """The cluster has taken it."""
    if progress.state not in UNDELIVERED:
        return progress
    return replace(progress, state=State.PENDING, delivery=Delivery.CONFIRMED, message="")


def unreachable(progress: Progress, reason: str) -> Progress:
    """The cluster did not answer. A job that it has runs on, so only the message changes."""
    if progress.state.has_ended:
        return progress
    state = State.WAITING if progress.state in UNDELIVERED else progress.state
    return replace(progress, state=state, message=reason)


def refused(progress: Progress, reason: str, now_s: float) -> Progress:
    """The cluster answered, does not have it and did not take it."""
    if progress.state not in UNDELIVERED:
        return progress
    refusals = progress.refusals + 1
    if refusals >= MAX_REFUSALS:
        return _ended(progress, State.FAILED, f"not taken after {refusals} tries: {reason}", now_s)
    return replace(
        progress, state=State.WAITING, refusals=refusals, message=reason, next_try_s=now_s + backoff_s(refusals)
    )


def seen(progress: Progress, found: Seen) -> Progress:
    """The cluster has it, whoever handed it over."""
    if progress.state.has_ended:
        return progress
    return replace(
        progress,
        state=found.state,
        delivery=Delivery.CONFIRMED,
        message=found.message,
        started_s=found.started_s,
        ended_s=found.ended_s,
    )


def missing(progress: Progress, session: str, now_s: float) -> Progress:
    """The cluster of that session answered and does not have it."""
    if progress.delivery is Delivery.CONFIRMED:
        return _ended(
            progress, State.LOST, "the cluster does not know this job any more: it was replaced, or the job deleted "
            "there. A retry goes on from what was committed", now_s,
        )  # fmt: skip
    if progress.delivery is Delivery.SENT and progress.session != session:
        return _ended(
            progress, State.LOST, "the cluster was replaced while this job was handed over; whether it ran there is "
            "not known. A retry goes on from what was committed", now_s,
        )  # fmt: skip
    if progress.stop_asked:
        return _ended(progress, State.STOPPED, "stopped before the cluster had it", now_s)
    return progress


def stop(progress: Progress, now_s: float) -> Progress:
    """Somebody asks for its end. What no cluster can have ends at once."""
    if progress.state.has_ended:
        return progress
    if progress.delivery is Delivery.NONE:
        return _ended(replace(progress, stop_asked=True), State.STOPPED, "stopped before the cluster had it", now_s)
    return replace(progress, stop_asked=True)


def failed(progress: Progress, reason: str, now_s: float) -> Progress:
    """It cannot be handed over at all."""
    return _ended(progress, State.FAILED, reason, now_s)


def backoff_s(failures: int) -> float:
    """Seconds until the next try after so many failures in a row."""
    return min(FIRST_RETRY_S * 2.0 ** min(failures - 1, 30), LAST_RETRY_S)


def _ended(progress: Progress, state: State, message: str, now_s: float) -> Progress:
    if progress.state.has_ended:
        return progress
    return replace(progress, state=state, message=message, ended_s=now_s)
