"""Jobs: submit, list, inspect, logs, stop, retry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import nullcontext
from threading import BoundedSemaphore
from typing import Annotated

from anyio import sleep
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from sqlalchemy import Connection

from deploy.service.access import Principal
from deploy.service.answers import described, described_beside_text
from deploy.service.audit import AuditRecord, log_record
from deploy.service.browse_routes import require_readable, slot, storage_errors
from deploy.service.context import InService, Service, Submitter, Viewer, address_of, service_of, team_of
from deploy.service.figures import Figures, read_figures
from deploy.service.jobs import Filter, Job
from deploy.service.spec_places import require_absolute
from deploy.service.states import Delivery, State
from deploy.service.views import (
    JobDetail,
    JobPage,
    JobView,
    Kind,
    Retry,
    Submission,
    job_detail,
    job_view,
)  # fmt: skip
from pipeline.logs import redacted
from pipeline.spec_file import validated
from schemas.errors import ForbiddenError, HeadworksError, MismatchError, MissingError, UserError

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])

JobId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}$", description="Id of the attempt.")]
PartOfName = Annotated[
    str | None, Query(pattern=r"^[A-Za-z0-9_.\-]{1,64}$", description="A part of the job's name, in any case.")
]
FilterName = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$")]


async def _stream_slot(service: InService, who: Viewer, follow: bool = False) -> AsyncIterator[None]:
    """Taken before the answer begins, given back when it has ended."""
    with service.streams.taken(who.name) if follow else nullcontext():
        yield


StreamSlot = Annotated[None, Depends(_stream_slot)]

_figure_slots = BoundedSemaphore(4)
"""Of their own: pages ask again and again, and where storage does not answer that must not keep searches waiting."""

_LOOK_S = 0.5
"""How often a log that is followed looks whether its job has begun or ended."""


@router.post("", status_code=201, responses=described(409) | {200: {"model": JobView}})
def submit(body: Submission, request: Request, answer: Response, who: Submitter) -> JobView:
    """Submit a job. 201: accepted, and it will run exactly once; 200: it is alive already, and this is it."""
    return _accept(request, answer, who, "job.submit", body)


@router.get("", responses=described())
def list_jobs(
    service: InService,
    who: Viewer,
    status: State | None = None,
    kind: Kind | None = None,
    name: PartOfName = None,
    team: FilterName = None,
    cluster: FilterName = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> JobPage:
    """Jobs of your team, an admin's of all teams, the newest first."""
    wanted = Filter(state=status, kind=kind, name=name, team=team, cluster=cluster)
    own = team_of(who)
    if own is not None and team not in (None, own):
        return JobPage(jobs=[], total=0, limit=limit, offset=offset)
    wanted = Filter(state=status, kind=kind, name=name, team=own or team, cluster=cluster)
    found, total = service.jobs.page(wanted, limit=limit, offset=offset)
    return JobPage(
        jobs=[job_view(job, service.watcher.tasks(job.id)) for job in found], total=total, limit=limit, offset=offset
    )


@router.get("/{job_id}", responses=described(404))
def inspect(job_id: JobId, service: InService, who: Viewer) -> JobDetail:
    """One job with its spec and its other attempts."""
    job = service.jobs.get(job_id, team_of(who))
    return job_detail(job, service.jobs.attempts(job), service.watcher.tasks(job.id))


@router.get("/{job_id}/figures", responses=described(404, 409, 502))
def figures(job_id: JobId, service: InService, who: Viewer) -> Figures:
    """Where the time of a collection goes and the curves of trainings, from what the job writes to its output; empty
    where there is nothing yet, or where the service does not see that storage."""
    job = service.jobs.get(job_id, team_of(who))
    spec = validated(dict(job.spec), where=job.id)
    with slot(_figure_slots, wait_s=1), storage_errors():
        return read_figures(spec, lambda url: require_readable(service, who, url))


@router.get(
    "/{job_id}/logs",
    response_class=PlainTextResponse,
    responses=described_beside_text(404, 409, 502) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def logs(job_id: JobId, service: InService, who: Viewer, _slot: StreamSlot, follow: bool = False) -> Response:
    """What a job has written so far; with ``follow`` the answer goes on, as it writes, until the job ends. The service
    keeps it from then on, of a very long one the beginning and the end."""
    job = await run_sync(service.jobs.get, job_id, team_of(who))
    if follow:
        return StreamingResponse(_followed(service, job_id), media_type="text/plain; charset=utf-8")
    if job.progress.delivery is not Delivery.CONFIRMED:
        return PlainTextResponse("")
    if kept := await run_sync(_kept_log, service, job):
        return PlainTextResponse(kept)
    if job.progress.state is State.LOST:
        raise MissingError(f"there is no log of {job_id} any more: {job.progress.message}")
    return PlainTextResponse(redacted(await run_sync(_cluster_log, service, job)))


@router.post("/{job_id}/stop", status_code=202, responses=described(404, 409))
def stop(job_id: JobId, request: Request, service: InService, who: Submitter) -> JobView:
    """Ask a job to end; what it has committed is kept. One that has ended stays as it is."""
    service.jobs.get(job_id, team_of(who))
    job = service.jobs.stop(job_id)
    service.audit.record(
        who, "job.stop", job.id, "ok", {"state": job.progress.state.value}, address=address_of(request)
    )
    _wake(service, job)
    return job_view(job)


@router.post("/{job_id}/retry", status_code=201, responses=described(404, 409) | {200: {"model": JobView}})
def retry(
    job_id: JobId, request: Request, answer: Response, service: InService, who: Submitter, body: Retry | None = None
) -> JobView:
    """A further attempt of a job that has ended. 200: one is alive already, and this is it."""
    job = service.jobs.get(job_id, team_of(who))
    if not job.progress.state.has_ended:
        raise MismatchError(
            f"{job.id} is {job.progress.state.lower()}; only a job that has ended is retried. Stop it first"
        )
    again = Submission(
        spec=validated(dict(job.spec), where=job.id), cluster=(body.cluster if body else None) or job.cluster
    )
    return _accept(request, answer, who, "job.retry", again)


def _accept(request: Request, answer: Response, who: Principal, action: str, body: Submission) -> JobView:
    service, address = service_of(request), address_of(request)
    spec = body.spec
    recorded: list[AuditRecord] = []

    def note(connection: Connection, job: Job) -> None:
        facts = {"cluster": job.cluster, "is_new": True}
        recorded[:] = [service.audit.record_in(connection, who, action, job.id, "ok", facts, address=address)]

    try:
        require_absolute(spec)
        cluster = service.cluster_named(body.cluster)
        service.check(spec, who)
        job, is_new = service.jobs.accept(
            spec, cluster=cluster, owner=who.name, team=who.team, attempt=body.attempt, note=note
        )
    except HeadworksError as error:
        outcome = "denied" if isinstance(error, ForbiddenError) else type(error).__name__
        service.audit.record(who, action, spec.name, outcome, {"message": str(error)}, address=address)
        raise
    if is_new:
        log_record(recorded[0])
    else:
        service.audit.record(who, action, job.id, "ok", {"cluster": job.cluster, "is_new": False}, address=address)
    answer.status_code = 201 if is_new else 200
    _wake(service, job)
    return job_view(job)


def _wake(service: Service, job: Job) -> None:
    # A job of a cluster that the settings no longer have is nobody's to move.
    if job.cluster in service.runners:
        service.runners[job.cluster].wake()


def _kept_log(service: Service, job: Job) -> str:
    """Empty where none is kept, or not yet."""
    return (service.kept_logs.find(job.id) or "") if job.progress.state.has_ended else ""


def _cluster_log(service: Service, job: Job) -> str:
    if job.cluster not in service.clusters:
        raise MissingError(f"cluster {job.cluster!r}, which has the log of {job.id}, is not in the settings any more")
    return service.clusters[job.cluster].logs(job.id)


async def _followed(service: Service, job_id: str) -> AsyncIterator[str]:
    """The log from its beginning until the job ends; one that breaks off is taken up where it was."""
    num_sent, is_whole = 0, False
    while True:
        job = await run_sync(service.jobs.get, job_id)
        if not num_sent and (kept := await run_sync(_kept_log, service, job)):
            yield kept
            return
        has_log = job.progress.delivery is Delivery.CONFIRMED and job.progress.state is not State.LOST
        if has_log and not is_whole and job.cluster in service.clusters:
            num_read = 0
            try:
                async for text in service.clusters[job.cluster].tail(job_id):
                    fresh = text[max(0, num_sent - num_read) :]
                    num_read += len(text)
                    if fresh:
                        num_sent = num_read
                        yield redacted(fresh)
                is_whole = True
            except UserError:
                is_whole = job.progress.state.has_ended
        if job.progress.state.has_ended:
            return
        await sleep(_LOOK_S)
