"""Job kind ``pipeline``: a list of jobs, each of which may use what an earlier one made."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from schemas.collect import CollectSpec
from schemas.errors import nearest
from schemas.evaluate import EvaluateSpec
from schemas.fields import ByteSize, Name, Spec, Url
from schemas.train import TrainSpec

Job = Annotated[CollectSpec | TrainSpec | EvaluateSpec, Field(discriminator="kind")]

_REFERENCE = re.compile(r"^\$\{([A-Za-z0-9_.\-]+)\}$")


class ClusterSpec(Spec):
    """The Ray that ``headworks run`` starts where no address is given. Never part of a fingerprint."""

    num_cpus: Annotated[int, Field(ge=0)] = 0
    """CPU cores to use; 0: all of this machine."""
    object_store_memory: ByteSize = 256 * 2**20
    """Shared memory for Ray's object store; receipts are small, so little is needed."""


class PipelineSpec(Spec):
    """Jobs in order. A job names an earlier job's output as ``${NAME}``."""

    kind: Literal["pipeline"] = "pipeline"
    """Discriminator."""
    name: Name = "pipeline"
    """Name of the run."""
    jobs: Annotated[list[Job], Field(min_length=1)]
    """The jobs, run one after the other."""
    cluster: ClusterSpec = ClusterSpec()
    """The Ray that is started where no address is given."""
    output: Url
    """Folder of the run: ``summary.json``; the jobs name their own outputs."""

    @model_validator(mode="after")
    def _references(self) -> Self:
        seen: dict[str, str] = {}
        wanted = {"store": "collect", "dictionaries": "train"}
        for index, job in enumerate(self.jobs):
            for field, kind in wanted.items():
                match = _REFERENCE.match(value) if isinstance(value := getattr(job, field, None), str) else None
                if match and seen.get(match[1]) != kind:
                    known = [name for name, its_kind in seen.items() if its_kind == kind]
                    raise ValueError(
                        f"jobs[{index}] ({job.name}): {field} refers to {value!r}, but no earlier job of kind {kind!r} "
                        f"has that name (known: {known}){nearest(match[1], known)}"
                    )
            if job.name in seen:
                raise ValueError(f"jobs[{index}]: the name {job.name!r} is taken by an earlier job")
            seen[job.name] = job.kind
        return self

    def resolved(self) -> list[CollectSpec | TrainSpec | EvaluateSpec]:
        """The jobs with every ``${NAME}`` replaced by that job's output."""
        outputs: dict[str, str] = {}
        jobs: list[CollectSpec | TrainSpec | EvaluateSpec] = []
        for job in self.jobs:
            updates: dict[str, Any] = {}
            for field in ("store", "dictionaries"):
                value = getattr(job, field, None)
                if isinstance(value, str) and (match := _REFERENCE.match(value)):
                    updates[field] = outputs[match[1]]
            jobs.append(job.model_copy(update=updates))
            outputs[job.name] = job.output
        return jobs


AnyJob = CollectSpec | TrainSpec | EvaluateSpec | PipelineSpec
JOB_ADAPTER: TypeAdapter[AnyJob] = TypeAdapter(Annotated[AnyJob, Field(discriminator="kind")])
"""Validates any job spec from plain data and gives its JSON Schema."""
