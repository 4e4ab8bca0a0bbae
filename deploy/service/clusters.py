"""A cluster as the service sees it: what the runner and the log pages ask of it, and Ray's Jobs API as one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from deploy import submission
from deploy.service.settings import ClusterSettings
from deploy.service.states import Seen, State
from deploy.submission import ClusterJob
from schemas.errors import MissingError, UnreachableError, UserError

_RAY_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class Cluster(Protocol):
    """Where jobs run. All but ``submit`` may be repeated without harm, and ``submit`` refuses an id that it has."""

    def session(self) -> str:
        """Its name from this start to the next. Raises: UnreachableError."""
        ...

    def known(self) -> dict[str, ClusterJob]:
        """Every job that it has, by id. Raises: UnreachableError."""
        ...

    def submit(self, spec: dict[str, Any], fingerprint: str, attempt: int) -> None:
        """Take a job. Raises: UserError: not taken. UnreachableError: no answer; it may have been taken."""
        ...

    def stop(self, identifier: str) -> None:
        """Begin to end a job. Raises: UnreachableError."""
        ...


class RayCluster:
    """A cluster behind Ray's Jobs API."""

    def __init__(self, name: str, settings: ClusterSettings) -> None:
        self.name = name
        self.address = settings.address
        self._settings = settings
        self._client: Any = None
        self._lock = Lock()

    def session(self) -> str:
        """See ``Cluster``."""
        try:
            return submission.session_of(self._connected())
        except UserError as error:
            raise self._lost(error) from error

    def known(self) -> dict[str, ClusterJob]:
        """See ``Cluster``."""
        try:
            return {job.id: job for job in submission.known_jobs(self._connected())}
        except UserError as error:
            raise self._lost(error) from error

    def submit(self, spec: dict[str, Any], fingerprint: str, attempt: int) -> None:
        """See ``Cluster``."""
        submission.hand_over(self._connected(), spec, fingerprint, attempt)

    def stop(self, identifier: str) -> None:
        """See ``Cluster``."""
        try:
            submission.ask_to_stop(self._connected(), identifier)
        except UserError as error:
            raise self._lost(error) from error

    def logs(self, identifier: str) -> str:
        """What a job has written so far. Raises: UnreachableError, MissingError: the cluster has no log of it."""
        try:
            return submission.read_logs(self._connected(), identifier)
        except UnreachableError:
            raise
        except UserError as error:
            raise MissingError(f"there is no log of {identifier} any more: {error}") from error

    async def tail(self, identifier: str) -> AsyncIterator[str]:
        """The log from its beginning, as it comes, until the job ends. Raises: UnreachableError."""
        from anyio.to_thread import run_sync

        client = await run_sync(self._connected)
        async for text in submission.tail(client, identifier):
            yield text

    def _lost(self, error: UserError) -> UnreachableError:
        """A cluster that answers nonsense, or asks for a token, is as good as none: to wait and to say why is right.
        The next try connects anew and reads the token again."""
        self._client = None
        return error if isinstance(error, UnreachableError) else UnreachableError(str(error))

    def _connected(self) -> Any:
        """Ray's client, made at the first use: the service starts whether or not its clusters answer."""
        with self._lock:
            if self._client is None:
                # Ray would prefer these to the address that it is given.
                for name in _RAY_ADDRESSES:
                    os.environ.pop(name, None)
                token = _read_token(self._settings.token_file)
                verify = self._settings.ca_file or True
                self._client = submission.connect(self.address, token=token, verify=verify)
            return self._client


def seen(job: ClusterJob) -> Seen:
    """What a cluster says of a job, in the terms of ``states``."""
    return Seen(State(job.status), job.message, _seconds(job.started), _seconds(job.ended))


def _seconds(time: str) -> float | None:
    return datetime.fromisoformat(time).timestamp() if time else None


def _read_token(file: str) -> str:
    if not file:
        return ""
    try:
        return Path(file).expanduser().read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UnreachableError(f"the cluster's token cannot be read from {file}: {error}") from error
