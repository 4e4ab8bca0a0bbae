"""How far the running jobs are: the service follows the log of each, once, however many people look.

What is known lies in this process's memory and is read anew from the logs after a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from anyio.to_thread import run_sync

from deploy.service.jobs import Jobs
from deploy.service.log_facts import LogFacts, TaskFacts
from schemas.errors import UserError

_log = logging.getLogger(__name__)

MOST_WATCHED = 500
"""Running jobs, the newest; of more the list shows no progress."""
_AGAIN_S = 5.0


class Tailed(Protocol):
    """A cluster whose logs can be followed."""

    def tail(self, identifier: str) -> AsyncIterator[str]:
        """The log from its beginning, as it comes, until the job ends. Raises: UnreachableError."""
        ...


class Watcher:
    """Of the jobs of a service; ``run`` goes on in the event loop until it is cancelled."""

    def __init__(self, jobs: Jobs, clusters: Mapping[str, Tailed], poll_s: float) -> None:
        self._jobs = jobs
        self._clusters = clusters
        self._poll_s = poll_s
        self._found: dict[str, LogFacts] = {}
        self._tails: dict[str, asyncio.Task[None]] = {}

    def tasks(self, identifier: str) -> list[TaskFacts]:
        """What a running job has said of its tasks, that of which it spoke last at the end; nothing of any other."""
        found = self._found.get(identifier)
        return found.tasks if found else []

    async def run(self) -> None:
        """Follow whatever runs."""
        try:
            while True:
                try:
                    self._follow(await run_sync(self._jobs.running, MOST_WATCHED))
                except Exception:  # noqa: BLE001 - a database that is away for a while must not end this
                    _log.exception("watching.round_failed")
                await asyncio.sleep(self._poll_s)
        finally:
            self._follow({})

    def _follow(self, running: Mapping[str, str]) -> None:
        """``running``: job -> its cluster."""
        for identifier in [name for name in self._tails if name not in running]:
            self._tails.pop(identifier).cancel()
            self._found.pop(identifier, None)
        for identifier, cluster in running.items():
            if identifier not in self._tails and cluster in self._clusters:
                self._tails[identifier] = asyncio.create_task(self._tail(identifier, self._clusters[cluster]))

    async def _tail(self, identifier: str, cluster: Tailed) -> None:
        while True:
            facts = LogFacts()
            try:
                async for text in cluster.tail(identifier):
                    facts.add(text)
                    self._found[identifier] = facts
                return
            except UserError as error:
                _log.info("watching.broke_off", extra={"facts": {"job_id": identifier, "why": str(error)}})
            except Exception:  # noqa: BLE001 - what Ray's client may raise is not all known
                _log.exception("watching.failed", extra={"facts": {"job_id": identifier}})
            await asyncio.sleep(_AGAIN_S)
