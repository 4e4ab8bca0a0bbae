"""Whether the service works, for people, orchestrators and Prometheus."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter, Response
from starlette.exceptions import HTTPException

from deploy.service.answers import described
from deploy.service.context import InService, Service, Viewer
from deploy.service.database import answers
from deploy.service.views import ClusterView, ErrorAnswer, Health, Readiness
from schemas.errors import UnreachableError
from schemas.versions import versions

router = APIRouter(tags=["health"])

_FRESH_S = 5.0


@router.get("/healthz", responses={503: {"model": ErrorAnswer}})
def healthz(service: InService) -> Health:
    """Whether the process and its database answer; asks for no token."""
    return Health(version=versions()["headworks"], database=_database(service))


@router.get("/readyz", responses={503: {"model": ErrorAnswer}})
def readyz(service: InService) -> Readiness:
    """The same, and which clusters answer; asks for no token."""
    reachable = {view.name: view.reachable for view in _clusters(service)}
    return Readiness(version=versions()["headworks"], database=_database(service), clusters=reachable)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(service: InService) -> Response:
    """For Prometheus; asks for no token and names no job."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/api/v1/clusters", tags=["clusters"], responses=described())
def clusters(service: InService, _who: Viewer) -> list[ClusterView]:
    """The clusters that jobs can name, the default one first, and why one does not answer."""
    return _clusters(service)


def _database(service: Service) -> str:
    if problem := answers(service.engine):
        raise HTTPException(503, f"the service's database does not answer: {problem}")
    return "ok"


def _clusters(service: Service) -> list[ClusterView]:
    """Asked of the clusters at most every ``_FRESH_S``, and by one thread, however often somebody asks here."""
    looks = service.looks
    if not looks.lock.acquire(blocking=not looks.found):
        return looks.found
    try:
        if time.monotonic() - looks.time_s > _FRESH_S:
            with ThreadPoolExecutor(max_workers=8) as pool:
                looks.found = [*pool.map(lambda name: _look(service, name), service.clusters)]
            looks.time_s = time.monotonic()
        return looks.found
    finally:
        looks.lock.release()


def _look(service: Service, name: str) -> ClusterView:
    cluster = service.clusters[name]
    try:
        cluster.session()
    except UnreachableError as error:
        return ClusterView(name=name, address=cluster.address, reachable=False, problem=str(error))
    return ClusterView(name=name, address=cluster.address, reachable=True, problem="")
