"""Job kind ``pipeline``: a list of jobs, each of which may use what an earlier one made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from schemas.circuit import CircuitSpec
from schemas.collect import CollectSpec
from schemas.errors import nearest
from schemas.evaluate import EvaluateSpec
from schemas.fields import ByteSize, Name, OutputUrl, Spec
from schemas.interpret import InterpretSpec
from schemas.model_references import REFERENCE, model_references, with_models
from schemas.shuffle import ShuffleSpec
from schemas.train import TrainSpec
from schemas.train_model import TrainModelSpec

Single = TrainModelSpec | CollectSpec | ShuffleSpec | TrainSpec | EvaluateSpec | InterpretSpec | CircuitSpec
"""A job of one kind."""

Job = Annotated[Single, Field(discriminator="kind")]


class ClusterSpec(Spec):
    """The Ray that ``headworks run`` starts where no address is given. Never part of a fingerprint."""

    num_cpus: Annotated[int, Field(ge=0)] = 0
    """CPU cores to use; 0: all of this machine."""
    object_store_memory: ByteSize = 256 * 2**20
    """Shared memory for Ray's object store: for blocks of rows of feeds ``live`` and ``tee``; little otherwise."""


class PipelineSpec(Spec):
    """Jobs in order. A job names an earlier job's output as ``${NAME}``."""

    kind: Literal["pipeline"] = "pipeline"
    """Discriminator."""
    name: Name = "pipeline"
    """Name of the run."""
    jobs: Annotated[list[Job], Field(min_length=1)]
    """The jobs, run one after the other; a training that is fed while its store is collected runs with that."""
    cluster: ClusterSpec = ClusterSpec()
    """The Ray that is started where no address is given."""
    output: OutputUrl
    """Folder of the run: ``summary.json``; the jobs name their own outputs."""

    @model_validator(mode="after")
    def _references(self) -> Self:
        seen: dict[str, str] = {}
        groups = {job.name for job in self.jobs if isinstance(job, CollectSpec) and job.is_group}
        for index, job in enumerate(self.jobs):
            for field, value, kinds in _references_of(job):
                match = REFERENCE.match(value)
                if match and seen.get(match[1]) not in kinds:
                    known = [name for name, its_kind in seen.items() if its_kind in kinds]
                    raise ValueError(
                        f"jobs[{index}] ({job.name}): {field} refers to {value!r}, but no earlier job of kind "
                        f"{' or '.join(map(repr, kinds))} has that name (known: {known}){nearest(match[1], known)}"
                    )
                if match and match[1] in groups and (reason := _no_group(job, field)):
                    raise ValueError(
                        f"jobs[{index}] ({job.name}): {field} refers to {value!r}, a group with a store for each "
                        f"snapshot; {reason}"
                    )
            if isinstance(job, CollectSpec):
                with_models(job, self._trainings())  # refuses snapshots that are not kept
            if job.name in seen:
                raise ValueError(f"jobs[{index}]: the name {job.name!r} is taken by an earlier job")
            seen[job.name] = job.kind
        return self

    def resolved(self) -> list[Single]:
        """The jobs with every ``${NAME}`` replaced by that job's output."""
        outputs: dict[str, str] = {}
        trainings = self._trainings()
        jobs: list[Single] = []
        for job in self.jobs:
            updates: dict[str, Any] = {}
            for field in ("store", "dictionaries", "interpretation"):
                value = getattr(job, field, None)
                if isinstance(value, str):
                    updates[field] = _resolved(value, outputs)
                elif isinstance(value, dict):
                    updates[field] = {name: _resolved(url, outputs) for name, url in value.items()}
            jobs.append(with_models(job.model_copy(update=updates), trainings))
            outputs[job.name] = job.output
        return jobs

    def _trainings(self) -> dict[str, TrainModelSpec]:
        return {job.name: job for job in self.jobs if isinstance(job, TrainModelSpec)}


def _sources(job: Single) -> dict[str, tuple[str, ...]]:
    """Field that may refer to an earlier job -> the kinds of job that it may refer to."""
    # Only training can do without contexts: the rest needs neighbours that belong together.
    stores = ("collect", "shuffle") if isinstance(job, TrainSpec) else ("collect",)
    return {"store": stores, "dictionaries": ("train",), "interpretation": ("interpret",)}


def _references_of(job: Job) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Field, its value and the kinds of job that it may refer to; ``store.NAME`` for one of several stores."""
    yield from ((field, value, ("train_model",)) for field, value in model_references(job))
    for field, kinds in _sources(job).items():
        value = getattr(job, field, None)
        if isinstance(value, str):
            yield field, value, kinds
        elif isinstance(value, dict):
            yield from ((f"{field}.{name}", url, kinds) for name, url in value.items())


def _no_group(job: Job, field: str) -> str:
    """Why the field cannot be a group of stores, empty where it can."""
    if isinstance(job, ShuffleSpec | CircuitSpec) or field != "store":
        return "give the URL of one of them, OUTPUT/SNAPSHOT"
    if isinstance(job, TrainSpec) and job.feed != "stored":
        return f"feed {job.feed} reads one store while it is collected, use feed: stored"
    return ""


def _resolved(value: str, outputs: Mapping[str, str]) -> str:
    match = REFERENCE.match(value)
    return outputs[match[1]] if match else value


AnyJob = Single | PipelineSpec
JOB_ADAPTER: TypeAdapter[AnyJob] = TypeAdapter(Annotated[AnyJob, Field(discriminator="kind")])
"""Validates any job spec from plain data and gives its JSON Schema."""
