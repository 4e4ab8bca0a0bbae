"""The service's own numbers for Prometheus; those of jobs come from Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.service.jobs import Jobs
from deploy.service.runner import RunnerThread
from deploy.service.states import State

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Metrics:
    """A registry of the service's own, so that several can be in one process."""

    def __init__(self, jobs: Jobs, runners: Mapping[str, RunnerThread]) -> None:
        self._jobs = jobs
        self._runners = runners
        self._registry = CollectorRegistry()
        self._states = Gauge(
            "headworks_service_jobs", "Jobs by cluster and state", ["cluster", "state"], registry=self._registry
        )
        self._up = Gauge(
            "headworks_service_cluster_up", "1: the cluster answered the runner the last time", ["cluster"],
            registry=self._registry,
        )  # fmt: skip
        self._alive = Gauge(
            "headworks_service_runner_alive", "1: the thread that moves the cluster's jobs is alive", ["cluster"],
            registry=self._registry,
        )  # fmt: skip
        self.requests = Counter(
            "headworks_service_requests", "Answers by route and status", ["method", "route", "status"],
            registry=self._registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "headworks_service_request_seconds", "From a request to the begin of its answer", ["method", "route"],
            registry=self._registry, buckets=_BUCKETS,
        )  # fmt: skip

    def text(self) -> str:
        """In Prometheus' text form."""
        counts = self._jobs.counts()
        for cluster, state in self._cells(counts):
            self._states.labels(cluster, state).set(counts.get((cluster, state), 0))
        for name, thread in self._runners.items():
            self._up.labels(name).set(not thread.runner.problem)
            self._alive.labels(name).set(thread.is_alive())
        return generate_latest(self._registry).decode("utf-8")

    def _cells(self, counts: Mapping[tuple[str, str], int]) -> Iterator[tuple[str, str]]:
        for cluster in sorted({*self._runners, *(name for name, _ in counts)}):
            yield from ((cluster, state.value) for state in State)


class Measured:
    """ASGI middleware: counts answers and times them to their begin, by the route and not by the path."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun_s = time.perf_counter()

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(scope, message["status"], time.perf_counter() - begun_s)
            await send(message)

        await self._app(scope, receive, sent)

    def _note(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        # A path that has no route would make a series of its own for every guess.
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(scope["method"], route, status).inc()
        self._metrics.seconds.labels(scope["method"], route).observe(seconds)
