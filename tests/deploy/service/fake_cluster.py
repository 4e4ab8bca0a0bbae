"""A cluster in this process that loses answers, dies and is replaced when told to; it counts how often each job ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from deploy.submission import ClusterJob, job_id
from schemas.errors import UnreachableError, UserError


class Killed(BaseException):
    """The service dies here; nothing of it catches this."""


class FakeCluster:
    """Jobs begin and end when the test says so."""

    def __init__(self) -> None:
        self.jobs: dict[str, ClusterJob] = {}
        self.started: Counter[str] = Counter()
        self.session_number = 0
        self.is_up = True
        self.refuses = False
        self.fault: Callable[[str], None] = lambda place: None
        """Called before and after each call with ``before NAME`` or ``after NAME``; may raise."""

    def session(self) -> str:
        self._begin("session")
        return self._end("session", f"session-{self.session_number}")

    def known(self) -> dict[str, ClusterJob]:
        self._begin("known")
        return self._end("known", dict(self.jobs))

    def submit(self, spec: dict[str, Any], fingerprint: str, attempt: int) -> None:
        self._begin("submit")
        identifier = job_id(spec["name"], fingerprint, attempt)
        if self.refuses:
            raise UserError("no room")
        if identifier in self.jobs:
            raise UserError(f"Job with submission_id {identifier} already exists")
        self.started[identifier] += 1
        self.jobs[identifier] = ClusterJob(
            identifier, spec["name"], spec["kind"], attempt, "PENDING", "", "", fingerprint, "queued"
        )
        self._end("submit", None)

    def stop(self, identifier: str) -> None:
        self._begin("stop")
        if identifier in self.jobs and not self.jobs[identifier].has_ended:
            self.to(identifier, "STOPPED")
        self._end("stop", None)

    def to(self, identifier: str, status: str) -> None:
        """The job is now in that status."""
        self.jobs[identifier] = replace(self.jobs[identifier], status=status, message=status.lower())

    def replace(self) -> None:
        """A new cluster at the same address."""
        self.session_number += 1
        self.jobs = {}

    def _begin(self, name: str) -> None:
        self.fault(f"before {name}")
        if not self.is_up:
            raise UnreachableError("nothing answers")

    def _end(self, name: str, answer: Any) -> Any:
        self.fault(f"after {name}")
        return answer
