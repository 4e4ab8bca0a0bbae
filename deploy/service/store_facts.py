"""What the service knows of stores beside what lies in them: which jobs read them, and how the last check went.

A job reads what the types of its spec say that it reads; it is counted once, however many attempts it takes. A check
compares the lengths of all objects with the ledger, by one listing, and reads no data: that takes the service seconds.
Every byte is for ``headworks store verify``, on a machine near the storage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import JSON, Column, Connection, Engine, Float, Integer, String, Table, delete, func, insert, select

from deploy.service.database import metadata, reading, writing
from pipeline.store.objects import Objects
from pipeline.store.verification import inspect
from schemas.pipeline import AnyJob, PipelineSpec
from schemas.reach import reached

_LONGEST_URL = 1024
"""Longer ones are no keys of a database, and nobody's store."""
MOST_PROBLEMS = 20
"""Kept of one check."""

store_reads = Table(
    "store_reads",
    metadata,
    Column("url", String(_LONGEST_URL), primary_key=True),
    Column("fingerprint", String(64), primary_key=True),
)
store_checks = Table(
    "store_checks",
    metadata,
    Column("url", String(_LONGEST_URL), primary_key=True),
    Column("checked_s", Float, nullable=False),
    Column("checked_by", String(64), nullable=False),
    Column("objects", Integer, nullable=False),
    Column("num_problems", Integer, nullable=False),
    Column("problems", JSON, nullable=False),
)


@dataclass(frozen=True)
class StoreCheck:
    """How a check went."""

    url: str
    checked_s: float
    checked_by: str
    """Whose token asked for it."""
    objects: int
    """How many objects the ledger names."""
    num_problems: int
    problems: list[str]
    """The first ones."""


def note_reads(connection: Connection, job: AnyJob, fingerprint: str) -> None:
    """Count a job that is accepted for the first time at every place that it reads."""
    if urls := read_urls(job):
        connection.execute(insert(store_reads), [{"url": url, "fingerprint": fingerprint} for url in sorted(urls)])


def read_urls(job: AnyJob) -> set[str]:
    """Stores and dictionaries that a job reads, those that it makes itself included."""
    several = job.resolved() if isinstance(job, PipelineSpec) else [job]
    found = {_key(each.value) for one in several for each in reached(one) if each.what == "read"}
    return {url for url in found if 0 < len(url) <= _LONGEST_URL}


class StoreFacts:
    """Those of a database."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock

    def num_readers(self, urls: Iterable[str]) -> dict[str, int]:
        """URL -> how many jobs read it; those that none reads are left out."""
        wanted = select(store_reads.c.url, func.count()).group_by(store_reads.c.url)
        with reading(self._engine) as connection:
            found = {
                url: count
                for some in _parts({_key(url) for url in urls})
                for url, count in connection.execute(wanted.where(store_reads.c.url.in_(some)))
            }
        return {url: found[_key(url)] for url in urls if _key(url) in found}

    def checks(self, urls: Iterable[str]) -> dict[str, StoreCheck]:
        """URL -> its last check, if there was one."""
        with reading(self._engine) as connection:
            rows = [
                row
                for some in _parts({_key(url) for url in urls})
                for row in connection.execute(select(store_checks).where(store_checks.c.url.in_(some))).mappings()
            ]
        found = {row["url"]: StoreCheck(**row) for row in rows}
        return {url: found[_key(url)] for url in urls if _key(url) in found}

    def check(self, url: str, who: str) -> StoreCheck:
        """Look at a store now, and remember how that went. Raises as ``pipeline.store.verification.inspect``."""
        found = inspect(Objects(url), is_deep=False)
        problems = [str(problem) for problem in found.problems]
        done = StoreCheck(_key(url), self._clock(), who, found.num_objects, len(problems), problems[:MOST_PROBLEMS])
        if len(done.url) > _LONGEST_URL:
            return done
        with writing(self._engine) as connection:
            connection.execute(delete(store_checks).where(store_checks.c.url == done.url))
            connection.execute(insert(store_checks).values(vars(done)))
        return done


def _key(url: str) -> str:
    return url.rstrip("/")


def _parts(urls: set[str], size: int = 500) -> list[Sequence[str]]:
    """As many as one statement takes."""
    ordered = sorted(urls)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
