"""Which jobs of a pipeline run at the same time: a collection and the trainings that are fed while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.collect import CollectSpec
from schemas.errors import SpecError
from schemas.pipeline import Single
from schemas.train import TrainSpec

Job = Single

LIVE = ("live", "tee")
"""Feeds that are handed rows from memory."""


@dataclass(frozen=True)
class Stage:
    """Jobs that run at the same time: one, or a collection and the trainings that it feeds."""

    first: Job
    fed: tuple[TrainSpec, ...] = ()

    @property
    def jobs(self) -> tuple[Job, ...]:
        """In the order of the pipeline."""
        return (self.first, *self.fed)


def stages(jobs: Sequence[Job]) -> list[Stage]:
    """The jobs in order, every training with its collection where it is fed by one of them.

    Raises:
        SpecError: a feed that cannot be.
    """
    collections = {job.output.rstrip("/"): job for job in jobs if isinstance(job, CollectSpec)}
    fed: dict[str, list[TrainSpec]] = {name: [] for name in collections}
    for job in jobs:
        if isinstance(job, TrainSpec) and job.feed != "stored":
            source = collections.get(str(job.store).rstrip("/"))
            if source is not None:
                fed[source.output.rstrip("/")].append(job)
            elif job.feed in LIVE:
                raise SpecError(
                    f"{job.name}: feed {job.feed} is handed rows by a collect job, so it needs one in the same "
                    "pipeline and `store: ${NAME}` of it; to read what another run collects use feed: follow"
                )
    for url, trainings in fed.items():
        _require_feeds(collections[url], trainings, jobs)
    joined = {training.name for trainings in fed.values() for training in trainings}
    return [
        Stage(job, tuple(fed[job.output.rstrip("/")]) if isinstance(job, CollectSpec) else ())
        for job in jobs
        if job.name not in joined
    ]


def _require_feeds(collection: CollectSpec, trainings: Sequence[TrainSpec], jobs: Sequence[Job]) -> None:
    handed = [job for job in trainings if job.feed in LIVE]
    if len(handed) > 1:
        raise SpecError(
            f"{collection.name} hands its rows to {' and '.join(job.name for job in handed)}: it can feed one training "
            "live. Put all dictionaries into one train job, or use feed: follow for the others"
        )
    if collection.is_group and trainings:
        raise SpecError(f"{trainings[0].name}: {collection.name} collects several stores; use feed: stored")
    if not any(job.feed == "live" for job in handed):
        return
    if collection.workers.placement in ("stages", "tensor"):
        raise SpecError(
            f"{collection.name}: feed live of {handed[0].name} takes blocks from replicas that are whole, placement is "
            f"{collection.workers.placement}: use feed: tee or follow, or placement: replica"
        )
    for job in jobs:
        if job is not handed[0] and collection.output.rstrip("/") in _read_by(job):
            raise SpecError(
                f"{job.name} reads the store of {collection.name}, but feed live of {handed[0].name} leaves none: use "
                "feed: tee, or read a store of its own"
            )


def _read_by(job: Job) -> set[str]:
    store = getattr(job, "store", "")
    return {url.rstrip("/") for url in (store.values() if isinstance(store, dict) else [store])}
