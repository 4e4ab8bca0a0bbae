"""What the API takes and gives, beside the specs themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deploy.service.jobs import Job
from deploy.service.log_facts import TaskFacts
from deploy.service.states import State
from deploy.service.store_facts import StoreCheck
from pipeline.logs import redacted
from pipeline.store.catalogue import StoreEntry
from schemas.fields import Name
from schemas.pipeline import AnyJob
from schemas.plan import PlanAssumptions

JobSpec = Annotated[AnyJob, Field(discriminator="kind")]
Kind = Literal["train_model", "collect", "shuffle", "train", "evaluate", "interpret", "circuit", "pipeline"]


class _View(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ErrorFacts(_View):
    """What is wrong."""

    type: str
    """Class of the error, the same as in Python: ``SpecError``, ``MissingError``."""
    message: str
    """For a person: what, where, what was expected, what to do."""
    field: str | None = None
    """The field of the spec or request that is wrong, if it is one: ``jobs[0].tokens.corpus.path``."""


class ErrorAnswer(_View):
    """The form of every answer with a status from 400 on."""

    error: ErrorFacts
    """What is wrong."""


class Submission(_View):
    """A job to be run."""

    spec: JobSpec
    """The job spec, the same as in a YAML file; every place in it is absolute or a URL."""
    cluster: Name | None = None
    """Name of the cluster; none: the service's first."""
    attempt: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Number of this attempt; none: the next free one."""


class Retry(_View):
    """Where a further attempt is to run."""

    cluster: Name | None = None
    """Name of the cluster; none: the same."""


class PlanRequest(_View):
    """A job to be planned."""

    spec: JobSpec
    """The job spec."""
    assumptions: PlanAssumptions = PlanAssumptions()
    """Prices, rates and limits."""


class TaskView(_View):
    """How far one task of a running job is, with the three digits that its log gives."""

    name: str
    """As ``pile: activations``."""
    done: float
    """Units that are done."""
    total: float | None
    """Null: not known."""
    unit: str
    """``tokens``, ``rows``, ``steps``, ..."""
    rate_per_s: float | None
    """Units each second of this run."""
    bytes_per_s: float | None
    """Written."""
    left_s: float | None
    """Seconds until it is done, at this rate."""
    waits: str
    """What it mostly waits for, as ``waited for rows 25 of the last 30 s``."""


class JobView(_View):
    """One attempt of a job. Times are ISO 8601 in UTC, null before they have come."""

    id: str
    """Name, beginning of the fingerprint and number of the attempt; also Ray's submission id."""
    name: str
    """From the spec."""
    kind: Kind
    """From the spec."""
    attempt: int
    """From 0 on."""
    status: State
    """See the states of a job in docs/operations.md."""
    stop_asked: bool
    """Somebody asked for its end."""
    message: str
    """Why it waits, or what the cluster says of it."""
    cluster: str
    """Where it runs."""
    owner: str
    """Whose token submitted it."""
    team: str
    """That person's team."""
    fingerprint: str
    """Of what it computes and where it puts it."""
    accepted: str
    """When it was committed to the service's database."""
    started: str | None
    """By the cluster's clock."""
    ended: str | None
    """By the cluster's clock, or the service's of what never ran."""
    tasks: list[TaskView]
    """Progress of a running job, by its log; the task of which it spoke last comes last."""


class JobDetail(JobView):
    """The same with its spec and its other attempts."""

    spec: dict[str, Any]
    """The job spec."""
    attempts: list[JobView]
    """All attempts of the same job, this one included, the first first."""


class JobPage(_View):
    """Some jobs, the newest first."""

    jobs: list[JobView]
    """Those of this page."""
    total: int
    """How many there are."""
    limit: int
    """As asked for."""
    offset: int
    """As asked for."""


class CheckView(_View):
    """How the last check of a store went: the lengths of all objects against the ledger, no data was read."""

    url: str
    """Of the store."""
    checked: str
    """ISO 8601 in UTC."""
    checked_by: str
    """Whose token asked for it."""
    objects: int
    """How many objects the ledger names."""
    num_problems: int
    """0: sound."""
    problems: list[str]
    """The first twenty."""


class StorePage(_View):
    """Some stores."""

    stores: list[StoreEntry]
    """Those of this page."""
    readers: dict[str, int]
    """URL -> how many jobs of this service read the store, each counted once however often it was tried; those that no
    job reads are left out."""
    checks: dict[str, CheckView]
    """URL -> the last check that was asked for here; those that were never checked are left out."""
    total: int
    """How many were found."""


class DictionaryRow(_View):
    """A dictionary in one line."""

    url: str
    """Its folder."""
    name: str
    """From its spec."""
    sources: dict[str, int]
    """source hook point -> d_model."""
    targets: dict[str, int]
    """target hook point -> d_model."""
    num_latents: int
    """Width of the code."""
    activation: str
    """Kind of its activation function."""
    steps: int
    """Optimiser steps taken."""
    rows: int
    """Rows seen in training."""
    metrics: dict[str, float]
    """Of the last training step that was logged."""


class DictionaryPage(_View):
    """Some dictionaries."""

    dictionaries: list[DictionaryRow]
    """Those of this page."""
    total: int
    """How many were found."""


class ClusterView(_View):
    """A cluster of the service."""

    name: str
    """As jobs name it."""
    address: str
    """URL of its dashboard."""
    reachable: bool
    """Whether it answered just now."""
    problem: str
    """Why it did not."""


class Health(_View):
    """The process and its database."""

    service: Literal["headworks"] = "headworks"
    """What answers here."""
    version: str
    """Of Headworks."""
    database: str
    """``ok``, or why it does not answer."""


class Readiness(Health):
    """The same, and the clusters; an unreachable one does not keep the service from accepting jobs."""

    clusters: dict[str, bool]
    """Cluster -> whether it answered just now."""


def job_view(job: Job, tasks: Sequence[TaskFacts] = ()) -> JobView:
    """As the API shows it."""
    return JobView.model_validate(_facts(job, tasks))


def job_detail(job: Job, attempts: list[Job], tasks: Sequence[TaskFacts]) -> JobDetail:
    """With its spec."""
    return JobDetail.model_validate(
        {**_facts(job, tasks), "spec": dict(job.spec), "attempts": [job_view(each) for each in attempts]}
    )


def check_view(check: StoreCheck) -> CheckView:
    """As the API shows it."""
    facts = {name: value for name, value in vars(check).items() if name != "checked_s"}
    return CheckView.model_validate({**facts, "checked": _time(check.checked_s)})


def _facts(job: Job, tasks: Sequence[TaskFacts]) -> dict[str, Any]:
    progress = job.progress
    return {
        **{name: getattr(job, name) for name in ("id", "name", "kind", "attempt", "cluster", "owner", "team")},
        "fingerprint": job.fingerprint,
        "status": progress.state,
        "stop_asked": progress.stop_asked,
        # Most have none, and a list has a thousand.
        "message": redacted(progress.message) if progress.message else "",
        "accepted": _time(job.accepted_s),
        "started": _time(progress.started_s),
        "ended": _time(progress.ended_s),
        "tasks": [{**asdict(task), "name": redacted(task.name)} for task in tasks],
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
