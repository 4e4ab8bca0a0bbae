"""Logs of jobs that have ended, kept in the service's database: they outlive the cluster that wrote them.

The database, and not the job's output: the service may read it whatever storage a job writes to, one backup has all of
it, and what a team can read there stays a matter of the service. A keeper for each cluster looks for jobs that have
ended and have no log here, so one that ended while the service was away is found, too.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from sqlalchemy import Column, Engine, Float, LargeBinary, String, Table, insert, select
from sqlalchemy.exc import IntegrityError

from deploy.service.database import metadata, reading, writing
from deploy.service.jobs import jobs
from deploy.service.states import ENDED, Delivery, State
from deploy.submission import ClusterJob
from pipeline.logs import redacted
from schemas.errors import MissingError, UnreachableError

_log = logging.getLogger(__name__)

FIRST_CHARACTERS, LAST_CHARACTERS = 2**18, 3 * 2**18
"""Of a longer log so much of its beginning and of its end is kept."""
_AT_ONCE = 16
"""Logs in one round."""
_TRIES = 5
"""So often a cluster that knows a job may give no log of it."""

kept_logs = Table(
    "kept_logs",
    metadata,
    Column("job", String(128), primary_key=True),
    Column("content", LargeBinary, nullable=False),
    Column("kept_s", Float, nullable=False),
)


class LogSource(Protocol):
    """What a keeper asks of a cluster."""

    def known(self) -> dict[str, ClusterJob]:
        """Every job that it has, by id. Raises: UnreachableError."""
        ...

    def logs(self, identifier: str) -> str:
        """What a job has written. Raises: UnreachableError, MissingError: it has no log of it."""
        ...


class KeptLogs:
    """The kept logs of a database."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock

    def keep(self, identifier: str, text: str) -> None:
        """Keep the log of a job that has ended, without secrets; the first that is kept stays."""
        content = zlib.compress(shortened(redacted(text)).encode("utf-8", errors="replace"))
        try:
            with writing(self._engine) as connection:
                row = {"job": identifier, "content": content, "kept_s": self._clock()}
                connection.execute(insert(kept_logs).values(row))
        except IntegrityError:
            pass  # another process of this service was faster

    def find(self, identifier: str) -> str | None:
        """The log; None: it is not kept, or not yet. Empty: the cluster had none any more."""
        with reading(self._engine) as connection:
            content = connection.execute(select(kept_logs.c.content).where(kept_logs.c.job == identifier)).scalar()
        return None if content is None else zlib.decompress(content).decode("utf-8")

    def missing(self, cluster: str) -> list[str]:
        """Some jobs of a cluster that ran there, have ended and have no log here, the oldest first."""
        has_log = jobs.c.delivery == Delivery.CONFIRMED.value
        over = jobs.c.state.in_(sorted(state.value for state in ENDED - {State.LOST}))
        wanted = (
            select(jobs.c.id)
            .outerjoin(kept_logs, kept_logs.c.job == jobs.c.id)
            .where(jobs.c.cluster == cluster, over, has_log, kept_logs.c.job.is_(None))
            .order_by(jobs.c.ended_s)
            .limit(_AT_ONCE)
        )
        with reading(self._engine) as connection:
            return list(connection.execute(wanted).scalars())


class LogKeeper:
    """Keeps the logs of one cluster's jobs."""

    def __init__(self, name: str, cluster: LogSource, logs: KeptLogs) -> None:
        self.name = name
        self._cluster = cluster
        self._logs = logs
        self._tries: Counter[str] = Counter()

    def step(self) -> bool:
        """One round, and whether the next one should follow at once."""
        missing = self._logs.missing(self.name)
        try:
            kept = sum(self._keep(identifier) for identifier in missing)
        except UnreachableError as error:
            _log.info("logs.waiting", extra={"facts": {"cluster": self.name, "why": str(error)}})
            return False
        return kept == _AT_ONCE

    def _keep(self, identifier: str) -> bool:
        try:
            text = self._cluster.logs(identifier)
        except MissingError:
            self._tries[identifier] += 1
            if identifier in self._cluster.known() and self._tries[identifier] < _TRIES:
                return False
            text = ""
        self._logs.keep(identifier, text)
        del self._tries[identifier]
        return True


def shortened(text: str) -> str:
    """The text, or its beginning and its end where it is longer than what is kept; cut at ends of lines."""
    left_out = len(text) - FIRST_CHARACTERS - LAST_CHARACTERS
    if left_out <= 0:
        return text
    first = text[:FIRST_CHARACTERS].rpartition("\n")[0] or text[:FIRST_CHARACTERS]
    last = text[-LAST_CHARACTERS:].partition("\n")[2] or text[-LAST_CHARACTERS:]
    return f"{first}\n[... {len(text) - len(first) - len(last):,} characters are not kept ...]\n{last}"
