"""What moves jobs: for each cluster one thread hands over what was accepted and follows what runs.

Everything that it knows is in the database, so that a service that was killed goes on where it was:

    1. ask the cluster which jobs it has
    2. of a job that it has, take over status, times and message; ask for its end if somebody asked for that
    3. of a job that it does not have: lost, stopped, or to be handed over (``states.missing``)
    4. to hand over: commit "sent", then submit under the job's id, then commit "confirmed"

Killed between any two of these, the next round finds the truth at 1, and submitting an id twice runs it once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from threading import Event, Thread
from typing import Protocol

from deploy.service import states
from deploy.service.clusters import Cluster, seen
from deploy.service.jobs import Job, Jobs
from deploy.service.states import UNDELIVERED, Progress
from deploy.submission import ClusterJob
from schemas.errors import UnreachableError, UserError

_log = logging.getLogger(__name__)

_HAND_OVERS = 8
"""In one round, so that a long queue does not hide how the jobs before it fare."""


class Runner:
    """The jobs of one cluster."""

    def __init__(self, name: str, cluster: Cluster, jobs: Jobs, clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self.problem = ""
        """Why the cluster did not answer the last time; empty if it did, or was not asked."""
        self._cluster = cluster
        self._jobs = jobs
        self._clock = clock
        self._failures = 0
        self._next_s = 0.0
        self._hand_overs = 0

    def step(self) -> bool:
        """One round over the jobs that have not ended, and whether the next one should follow at once.

        Does nothing before the next try is due.
        """
        alive = self._jobs.alive(self.name) if self._clock() >= self._next_s else []
        if not alive:
            return False
        self._hand_overs = 0
        try:
            session, known = self._look()
            for job in alive:
                self._advance(job, session, known)
        except UnreachableError as error:
            self._failed(str(error))
            return False
        self.problem, self._failures, self._next_s = "", 0, 0.0
        return self._hand_overs > _HAND_OVERS

    def _look(self) -> tuple[str, Mapping[str, ClusterJob]]:
        """The cluster's session and jobs, of one and the same session."""
        session = self._cluster.session()
        known = self._cluster.known()
        if self._cluster.session() != session:
            raise UnreachableError("the cluster was replaced just now")
        return session, known

    def _advance(self, job: Job, session: str, known: Mapping[str, ClusterJob]) -> None:
        if found := known.get(job.id):
            self._change(job, states.seen(job.progress, seen(found)))
            if job.progress.stop_asked and not found.has_ended:
                self._cluster.stop(job.id)
            return
        progress = states.missing(job.progress, session, self._clock())
        if progress.state.has_ended:
            self._change(job, progress)
        elif twin := _alive_twin(job, known):
            self._change(job, states.failed(progress, _twin_words(twin), self._clock()))
        elif self._clock() >= progress.next_try_s:
            self._hand_overs += 1
            if self._hand_overs <= _HAND_OVERS:
                self._hand_over(job, session)

    def _hand_over(self, job: Job, session: str) -> None:
        sent = self._change(job, states.sending(job.progress, session))
        if sent is None:
            return  # somebody asked for its end just now; the next round sees that
        try:
            self._cluster.submit(dict(sent.spec), sent.fingerprint, sent.attempt)
        except UnreachableError:
            raise
        except UserError as error:
            if sent.id not in self._cluster.known():
                self._change(sent, states.refused(sent.progress, str(error), self._clock()))
                return
        self._change(sent, states.confirmed(sent.progress))

    def _failed(self, reason: str) -> None:
        self.problem = reason
        self._failures += 1
        self._next_s = self._clock() + states.backoff_s(self._failures)
        for job in self._jobs.alive(self.name):
            self._change(job, states.unreachable(job.progress, reason))

    def _change(self, job: Job, progress: Progress) -> Job | None:
        changed = self._jobs.change(job, progress)
        if changed is not None and progress.state is not job.progress.state:
            facts = {"job": job.id, "cluster": self.name, "before": job.progress.state, "state": progress.state}
            _log.info("job.state", extra={"facts": facts})
        return changed


def _alive_twin(job: Job, known: Mapping[str, ClusterJob]) -> ClusterJob | None:
    """The same job, handed to the cluster by somebody else under another attempt."""
    same = (other for other in known.values() if other.fingerprint == job.fingerprint and not other.has_ended)
    return next(same, None) if job.progress.state in UNDELIVERED else None


def _twin_words(twin: ClusterJob) -> str:
    return (
        f"this job is {twin.status.lower()} on the cluster already, as {twin.id}, and not through this service; two of "
        "them would write to the same output"
    )


class Rounds(Protocol):
    """What is done again and again for one cluster."""

    name: str
    """Of the cluster."""

    def step(self) -> bool:
        """One round, and whether the next one should follow at once."""
        ...


class RoundsThread:
    """Rounds, ``poll_s`` apart, sooner after ``wake``; ``what``: a word for the thread's name."""

    def __init__(self, rounds: Rounds, poll_s: float, what: str) -> None:
        self._rounds = rounds
        self._poll_s = poll_s
        self._wake = Event()
        self._stopping = False
        self._thread = Thread(target=self._run, name=f"{what}-{rounds.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    def stop(self) -> None:
        """End after this round. What is under way is found again by the next start."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=10)

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                if self._rounds.step():
                    continue
            except Exception:  # noqa: BLE001 - a database that is away for a while must not end this thread
                _log.exception("service.round_failed", extra={"facts": {"thread": self._thread.name}})
            self._wake.wait(self._poll_s)


class RunnerThread(RoundsThread):
    """The rounds of a runner."""

    def __init__(self, runner: Runner, poll_s: float) -> None:
        super().__init__(runner, poll_s, "runner")
        self.runner = runner
