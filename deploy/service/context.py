"""What every request meets: the service's parts, who asks, and what they may do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from sqlalchemy import Engine
from starlette.exceptions import HTTPException

from deploy.service.access import Principal, Role, Tokens
from deploy.service.audit import Audit
from deploy.service.clusters import RayCluster
from deploy.service.jobs import Jobs
from deploy.service.kept_logs import KeptLogs
from deploy.service.limits import Slots
from deploy.service.metrics import Metrics
from deploy.service.policy import Policy
from deploy.service.runner import RoundsThread, RunnerThread
from deploy.service.settings import Settings, is_loopback
from deploy.service.store_facts import StoreFacts
from deploy.service.views import ClusterView
from deploy.service.watching import Watcher
from schemas.errors import ForbiddenError, SpecError, nearest
from schemas.pipeline import AnyJob

LOCAL = Principal("local", Role.ADMIN, "local")
"""Whoever reaches a service on its own machine that has no tokens."""


@dataclass
class Looks:
    """What the clusters answered when somebody last looked."""

    lock: Lock = field(default_factory=Lock)
    time_s: float = float("-inf")
    found: list[ClusterView] = field(default_factory=list)


@dataclass
class Service:
    """The parts of a running service."""

    settings: Settings
    engine: Engine
    jobs: Jobs
    tokens: Tokens
    audit: Audit
    policy: Policy | None
    """None: on this machine alone, without tokens; then everything is allowed to whoever is here."""
    clusters: dict[str, RayCluster]
    runners: dict[str, RunnerThread]
    kept_logs: KeptLogs
    store_facts: StoreFacts
    watcher: Watcher
    keepers: list[RoundsThread]
    """Threads that fetch the logs of jobs that have ended."""
    metrics: Metrics
    streams: Slots
    looks: Looks = field(default_factory=Looks)

    def cluster_named(self, name: str | None) -> str:
        """The name of a cluster, the default one's for None. Raises: SpecError: there is no such cluster."""
        name = name or self.settings.default_cluster
        if name not in self.clusters:
            known = sorted(self.clusters)
            raise SpecError(f"cluster: no cluster is named {name!r}, expected one of {known}{nearest(name, known)}")
        return name

    def check(self, job: AnyJob, principal: Principal) -> None:
        """Raises: ForbiddenError: the policy does not allow the job."""
        if self.policy is not None:
            self.policy.check(job, principal)


def service_of(request: Request) -> Service:
    """The service that the app is of."""
    service: Service = request.app.state.service
    return service


async def _service_in(request: Request) -> Service:
    """The same for routes; what waits for nothing is no work for a thread."""
    return service_of(request)


InService = Annotated[Service, Depends(_service_in)]


def principal_of(request: Request, service: InService) -> Principal:
    """Who asks.

    Raises:
        HTTPException: 401 without a valid token.
    """
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and (found := service.tokens.find(secret.strip())) is not None:
        return found
    if not kind and _is_open(request, service):
        return LOCAL
    raise HTTPException(
        401,
        "this service asks for a token, and this request has none or one that is not valid (unknown, revoked or "
        "expired); put yours into HEADWORKS_TOKEN or ~/.headworks/token, or ask the operator for one",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _is_open(request: Request, service: Service) -> bool:
    """Without tokens and policy, for requests of this machine that name it and come from no page elsewhere: a browser
    here must not be made to ask for others."""
    host = request.url.hostname or ""
    client = request.client.host if request.client else ""
    origin = request.headers.get("origin", "")
    return (
        service.policy is None
        and is_loopback(host)
        and (not origin or is_loopback(urlsplit(origin).hostname or ""))
        and (is_loopback(client) or client == "testclient")
        and not service.tokens.all()
    )


def _at_least(role: Role) -> Callable[[Principal], Awaitable[Principal]]:
    async def check(principal: Annotated[Principal, Depends(principal_of)]) -> Principal:
        if not principal.role.may_act_as(role):
            raise ForbiddenError(
                f"{principal.name} is a {principal.role}; this asks for the role {role} or more. Ask the operator for "
                "another token"
            )
        return principal

    return check


Viewer = Annotated[Principal, Depends(_at_least(Role.VIEWER))]
Submitter = Annotated[Principal, Depends(_at_least(Role.SUBMITTER))]
Admin = Annotated[Principal, Depends(_at_least(Role.ADMIN))]


def team_of(principal: Principal) -> str | None:
    """The team whose jobs they see; None: all."""
    return None if principal.role is Role.ADMIN else principal.team


def address_of(request: Request) -> str:
    """Of the client, for the audit log."""
    return request.client.host if request.client else ""
