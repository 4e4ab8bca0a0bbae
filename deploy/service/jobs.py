"""The jobs of the service: a table that is the truth of what was accepted, and the only way to change it.

A job is accepted when its row is committed. Every change of a row is a compare-and-set on its version, so that the
request that stops a job and the runner that hands it over cannot overwrite each other. That only one attempt of a job
lives at a time is held by an index of the database, whatever processes share it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    RowMapping,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    insert,
    select,
    update,
)  # fmt: skip
from sqlalchemy.exc import IntegrityError

from deploy.service import states
from deploy.service.database import metadata, reading, writing
from deploy.service.states import ALIVE, Delivery, Progress, State
from deploy.service.store_facts import note_reads
from deploy.submission import ClusterJob, job_fingerprint, job_id, next_attempt
from schemas.errors import BusyError, MismatchError, MissingError, nearest
from schemas.pipeline import AnyJob

_TRIES = 20
"""Of a change that others overtake."""

_NAMED = 200
"""Of the newest jobs, those that a mistyped id is compared with."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("cluster", String(64), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("team", String(64), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("accepted_s", Float, nullable=False),
    Column("version", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("delivery", String(16), nullable=False),
    Column("session", String(128), nullable=False),
    Column("stop_asked", Boolean, nullable=False),
    Column("refusals", Integer, nullable=False),
    Column("next_try_s", Float, nullable=False),
    Column("message", Text, nullable=False),
    Column("started_s", Float),
    Column("ended_s", Float),
    UniqueConstraint("fingerprint", "attempt"),
)
_IS_ALIVE = jobs.c.state.in_(sorted(ALIVE))
Index("jobs_one_alive", jobs.c.fingerprint, unique=True, sqlite_where=_IS_ALIVE, postgresql_where=_IS_ALIVE)
Index("jobs_newest", jobs.c.accepted_s.desc(), jobs.c.id)
Index("jobs_of_cluster", jobs.c.cluster, jobs.c.state)

_PROGRESS = tuple(Progress.__dataclass_fields__)


@dataclass(frozen=True)
class Job:
    """A row: one attempt of one job."""

    id: str
    name: str
    kind: str
    fingerprint: str
    attempt: int
    cluster: str
    owner: str
    team: str
    accepted_s: float
    version: int
    progress: Progress
    spec: Mapping[str, Any]
    """Empty in lists."""

    def as_on_cluster(self) -> ClusterJob:
        """In the terms of ``deploy.submission``."""
        return ClusterJob(
            self.id, self.name, self.kind, self.attempt, self.progress.state, "", "", self.fingerprint,
            self.progress.message,
        )  # fmt: skip


@dataclass(frozen=True)
class Filter:
    """Which jobs of a list; None: any. ``name``: a part of it, in any case."""

    state: State | None = None
    kind: str | None = None
    name: str | None = None
    team: str | None = None
    cluster: str | None = None

    def clauses(self) -> list[ColumnElement[bool]]:
        """For a WHERE."""
        given = {field: value for field, value in asdict(self).items() if value is not None}
        part = given.pop("name", None)
        equal = [jobs.c[field] == value for field, value in given.items()]
        return [*equal, *([jobs.c.name.icontains(part, autoescape=True)] if part is not None else [])]


class Jobs:
    """The jobs of a database."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock

    def accept(
        self,
        job: AnyJob,
        *,
        cluster: str,
        owner: str,
        team: str,
        attempt: int | None = None,
        note: Callable[[Connection, Job], None] = lambda connection, job: None,
    ) -> tuple[Job, bool]:
        """The job as accepted, and whether it is new: one that lives already is given back as it is. What ``note``
        writes of a new one is committed with it, or not at all.

        Raises:
            MismatchError: it lives on another cluster, for another team or as another attempt, or that attempt was.
        """
        mark = job_fingerprint(job)
        for _ in range(_TRIES):
            try:
                with writing(self._engine) as connection:
                    same = _all(connection, jobs.c.fingerprint == mark)
                    living = next((one for one in same if not one.progress.state.has_ended), None)
                    if living is not None:
                        return _same_again(living, cluster, team, attempt), False
                    number = next_attempt([one.as_on_cluster() for one in same], attempt)
                    row = Job(
                        job_id(job.name, mark, number), job.name, job.kind, mark, number, cluster, owner, team,
                        self._clock(), 0, Progress(), job.model_dump(mode="json"),
                    )  # fmt: skip
                    connection.execute(insert(jobs).values(_values(row)))
                    if not same:
                        note_reads(connection, job, mark)
                    note(connection, row)
                return row, True
            except IntegrityError:
                continue  # somebody else accepted the same job in between: look again
        raise _overtaken(job.name)

    def get(self, identifier: str, team: str | None = None) -> Job:
        """One job; with ``team`` those of others are not there.

        Raises:
            MissingError: there is none.
        """
        with reading(self._engine) as connection:
            found = _all(connection, jobs.c.id == identifier)
        if not found or team not in (None, found[0].team):
            known = [job.id for job in self.page(Filter(team=team), limit=_NAMED, offset=0)[0]]
            raise MissingError(f"no job {identifier!r}{nearest(identifier, known)}; `headworks jobs list` names them")
        return found[0]

    def attempts(self, job: Job) -> list[Job]:
        """All attempts of the same job by the same team, the first first."""
        with reading(self._engine) as connection:
            return _all(connection, jobs.c.fingerprint == job.fingerprint, jobs.c.team == job.team)

    def page(self, wanted: Filter, *, limit: int, offset: int) -> tuple[list[Job], int]:
        """Some of the jobs, the newest first and without their specs, and how many there are."""
        clauses = wanted.clauses()
        columns = [column for column in jobs.c if column.name != "spec"]
        with reading(self._engine) as connection:
            total = connection.execute(select(func.count()).select_from(jobs).where(*clauses)).scalar_one()
            rows = connection.execute(
                select(*columns).where(*clauses).order_by(jobs.c.accepted_s.desc(), jobs.c.id)
                .limit(limit).offset(offset)
            ).mappings()  # fmt: skip
            return [_job(row) for row in rows], total

    def alive(self, cluster: str) -> list[Job]:
        """The jobs of a cluster that have not ended, in the order in which they were accepted."""
        with reading(self._engine) as connection:
            return _all(connection, jobs.c.cluster == cluster, _IS_ALIVE)

    def running(self, limit: int) -> dict[str, str]:
        """Job -> its cluster, of the newest jobs that run."""
        wanted = select(jobs.c.id, jobs.c.cluster).where(jobs.c.state == State.RUNNING.value)
        with reading(self._engine) as connection:
            rows = connection.execute(wanted.order_by(jobs.c.accepted_s.desc()).limit(limit))
            return {row.id: row.cluster for row in rows}

    def counts(self) -> dict[tuple[str, str], int]:
        """``(cluster, state)`` -> how many jobs."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(jobs.c.cluster, jobs.c.state, func.count()).group_by(jobs.c.cluster, jobs.c.state)
            )
            return {(cluster, state): number for cluster, state, number in rows}

    def change(self, job: Job, progress: Progress) -> Job | None:
        """Commit how far it is, unless somebody has changed the job since it was read: then None."""
        if progress == job.progress:
            return job
        with writing(self._engine) as connection:
            done = connection.execute(
                update(jobs)
                .where(jobs.c.id == job.id, jobs.c.version == job.version)
                .values(version=job.version + 1, **_plain(progress))
            )
        return replace(job, version=job.version + 1, progress=progress) if done.rowcount else None

    def stop(self, identifier: str) -> Job:
        """Ask for its end; what has ended stays as it is."""
        for _ in range(_TRIES):
            job = self.get(identifier)
            if changed := self.change(job, states.stop(job.progress, self._clock())):
                return changed
        raise _overtaken(identifier)


def _same_again(living: Job, cluster: str, team: str, attempt: int | None) -> Job:
    if living.team != team:
        raise MismatchError(
            "this job is alive already, for another team; two of them would write to the same output. Give another "
            "`output`"
        )
    if living.cluster != cluster or attempt not in (None, living.attempt):
        raise MismatchError(
            f"this job is alive already, as {living.id} ({living.progress.state.lower()}) on cluster "
            f"{living.cluster!r}; two of them would write to the same output. Watch it (`headworks jobs status`), or "
            "stop it first (`headworks jobs stop`)"
        )
    return living


def _overtaken(name: str) -> BusyError:
    return BusyError(f"{name} is being changed by others again and again; try again")


def _all(connection: Connection, *clauses: ColumnElement[bool]) -> list[Job]:
    found = connection.execute(select(jobs).where(*clauses).order_by(jobs.c.accepted_s, jobs.c.attempt)).mappings()
    return [_job(row) for row in found]


def _job(row: Mapping[str, Any] | RowMapping) -> Job:
    progress = {name: row[name] for name in _PROGRESS}
    progress |= {"state": State(row["state"]), "delivery": Delivery(row["delivery"])}
    rest = {name: row[name] for name in Job.__dataclass_fields__ if name not in {"progress", "spec"}}
    return Job(progress=Progress(**progress), spec=row.get("spec", {}), **rest)


def _values(job: Job) -> dict[str, Any]:
    facts = {name: getattr(job, name) for name in Job.__dataclass_fields__ if name not in {"progress", "spec"}}
    return facts | {"spec": json.loads(json.dumps(job.spec)), **_plain(job.progress)}


def _plain(progress: Progress) -> dict[str, Any]:
    return {**asdict(progress), "state": progress.state.value, "delivery": progress.delivery.value}
