"""The app: its parts put together, from the settings and a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import run_sync
from fastapi import FastAPI

from deploy.service import answers, audit_routes, browse_routes, docs_routes, health_routes, job_routes
from deploy.service.access import Tokens
from deploy.service.audit import Audit
from deploy.service.clusters import RayCluster
from deploy.service.context import Service
from deploy.service.database import open_database
from deploy.service.jobs import Jobs
from deploy.service.kept_logs import KeptLogs, LogKeeper
from deploy.service.limits import LimitRequests, RequestLimits, Slots
from deploy.service.metrics import Measured, Metrics
from deploy.service.pages import page_routes
from deploy.service.policy import load_policy
from deploy.service.runner import RoundsThread, Runner, RunnerThread
from deploy.service.settings import Settings, is_loopback
from deploy.service.store_facts import StoreFacts
from deploy.service.watching import Watcher
from schemas.errors import UserError
from schemas.versions import versions

_ABOUT = """
Submit, watch and reuse: jobs of Headworks on any of the service's clusters.

Send your token as `Authorization: Bearer hw_...`. Every error has the form `{"error": {"type", "message", "field"?}}`.
"""


def build_service(settings: Settings) -> Service:
    """The parts over the database, which is opened; nothing runs yet.

    Raises:
        UserError: the database or the policy does not open.
    """
    engine = open_database(settings.database)
    jobs = Jobs(engine)
    clusters = {name: RayCluster(name, each) for name, each in settings.clusters.items()}
    runners = {name: RunnerThread(Runner(name, cluster, jobs), settings.poll_s) for name, cluster in clusters.items()}
    kept_logs = KeptLogs(engine)
    keepers = [
        RoundsThread(LogKeeper(name, cluster, kept_logs), settings.poll_s, "keeper")
        for name, cluster in clusters.items()
    ]
    policy = load_policy(settings.policy) if settings.policy else None
    return Service(
        settings,
        engine,
        jobs,
        Tokens(engine),
        Audit(engine),
        policy,
        clusters,
        runners,
        kept_logs,
        StoreFacts(engine),
        Watcher(jobs, clusters, settings.poll_s),
        keepers,
        Metrics(jobs, runners),
        Slots(settings.limits.streams, settings.limits.streams_of_one),
    )


def require_guarded(service: Service, host: str) -> None:
    """Refuse to listen where strangers could come in.

    Raises:
        UserError: other machines reach the address and there are no tokens, or tokens and no policy.
    """
    has_tokens = bool(service.tokens.all())
    if not is_loopback(host) and not has_tokens:
        raise UserError(
            f"--host {host}: other machines reach this address, and the service has no tokens, so anybody could run "
            "jobs. Make a token (`headworks tokens create`) and name a policy in the settings, or listen on 127.0.0.1"
        )
    if has_tokens and service.policy is None:
        raise UserError(
            "the service has tokens, but its settings name no policy, so nothing says what their teams may reach. Put "
            "`policy: FILE` into the settings (see docs/operations.md)"
        )


def create_app(service: Service) -> FastAPI:
    """The app over the parts; its runners go while it does."""

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        threads = [*service.runners.values(), *service.keepers]
        for thread in threads:
            thread.start()
        watching = asyncio.create_task(service.watcher.run())
        yield
        watching.cancel()
        for thread in threads:
            await run_sync(thread.stop)
        service.engine.dispose()

    app = FastAPI(
        title="Headworks", version=versions()["headworks"], description=_ABOUT, lifespan=life,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.service = service
    answers.install(app)
    for routes in (job_routes, browse_routes, audit_routes, health_routes, docs_routes):
        app.include_router(routes.router)
    app.include_router(page_routes.router)
    limits = RequestLimits(**service.settings.limits.model_dump())
    app.add_middleware(LimitRequests, limits=limits, exempt=frozenset({"/healthz", "/readyz", "/metrics"}))
    app.add_middleware(Measured, metrics=service.metrics)
    return app
