"""A client of the service: the functions of ``deploy.submission``, over a service instead of a cluster's own API.

The bearer token comes from ``HEADWORKS_TOKEN``, or else from ``~/.headworks/token``; never from a spec or a URL.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

from deploy.submission import ClusterJob
from pipeline.spec_paths import anchored
from schemas import errors
from schemas.errors import HeadworksError, JobError, MissingError, SpecError, UnreachableError, UserError
from schemas.fields import require_no_credentials
from schemas.pipeline import AnyJob

TOKEN = "HEADWORKS_TOKEN"  # noqa: S105 - the name of a variable
SERVICE = "HEADWORKS_SERVICE"
TOKEN_FILE = Path("~/.headworks/token")
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 120.0

_PROBE_TIMEOUT_S = 5.0
_PAGE = 1000
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")


@dataclass(frozen=True)
class ServiceJob(ClusterJob):
    """A job as the service knows it; the status may also be ACCEPTED, WAITING or LOST."""

    cluster: str
    """Where it runs."""
    owner: str
    """Whose token submitted it."""
    team: str
    """That person's team."""
    accepted: str
    """ISO 8601, UTC."""
    tasks: list[dict[str, Any]]
    """Progress while it runs: ``name``, ``done``, ``total``, ``unit``, ``rate_per_s``, ``bytes_per_s``, ``left_s``,
    ``waits`` of each task, that of which its log spoke last at the end."""


def is_service(address: str) -> bool:
    """Whether a Headworks service answers there; False where nothing does."""
    try:
        answer = httpx2.get(f"{address.rstrip('/')}/healthz", timeout=_PROBE_TIMEOUT_S)
        return bool(answer.json().get("service") == "headworks")
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, AttributeError):
        return False


def submit(job: AnyJob, address: str, *, attempt: int | None = None, cluster: str | None = None) -> ServiceJob:
    """Hand a job to the service and return as soon as it is accepted; the same job that is alive already is given back.

    Relative paths are made absolute from the current directory; the clusters must see the same storage under them.

    Raises:
        MismatchError: it is alive in another form, or that attempt was there already. UserError: it is refused.
        UnreachableError: nothing answers at the address.
    """
    spec = anchored(job, Path.cwd()).model_dump(mode="json")
    with _opened(address) as http:
        return _job(_json(http.post("/api/v1/jobs", json={"spec": spec, "attempt": attempt, "cluster": cluster})))


def jobs(address: str) -> list[ServiceJob]:
    """The jobs that this token may see, the newest first."""
    found: list[ServiceJob] = []
    with _opened(address) as http:
        while True:
            page = _json(http.get("/api/v1/jobs", params={"limit": _PAGE, "offset": len(found)}))
            found += map(_job, page["jobs"])
            if not page["jobs"] or len(found) >= page["total"]:
                return found


def status(identifier: str, address: str) -> ServiceJob:
    """One job. Raises: MissingError: the service has no such job."""
    with _opened(address) as http:
        return _job(_json(http.get(_path(identifier))))


def logs(identifier: str, address: str) -> str:
    """What the job has written so far."""
    with _opened(address) as http:
        return str(_checked(http.get(_path(identifier, "logs"))).text)


def follow(identifier: str, address: str, write: Callable[[str], None]) -> ServiceJob:
    """Write the job's log as it comes, until the job ends.

    Raises:
        JobError: the job failed, was stopped or lost.
    """
    with _opened(address, is_endless=True) as http:
        with http.stream("GET", _path(identifier, "logs"), params={"follow": True}) as answer:
            if answer.is_error:
                answer.read()
            for text in _checked(answer).iter_text():
                write(text)
        job = _job(_json(http.get(_path(identifier))))
    if job.status != "SUCCEEDED":
        raise JobError(f"{identifier} {job.status.lower()}: {job.message}")
    return job


def stop(identifier: str, address: str) -> bool:
    """Ask a job to stop, and return whether it had not ended yet. What it has committed is kept."""
    with _opened(address) as http:
        before = _job(_json(http.get(_path(identifier))))
        _checked(http.post(_path(identifier, "stop")))
    return not before.has_ended


def retry(identifier: str, address: str, *, cluster: str | None = None) -> ServiceJob:
    """A further attempt of a job that has ended. Raises: MismatchError: it has not ended."""
    with _opened(address) as http:
        return _job(_json(http.post(_path(identifier, "retry"), json={"cluster": cluster})))


def _path(identifier: str, action: str = "") -> str:
    if not _IDENTIFIER.fullmatch(identifier):
        raise MissingError(
            f"no job {identifier!r}: expected letters, digits, '_', '.' and '-'; `headworks jobs list` names them"
        )
    return f"/api/v1/jobs/{quote(identifier, safe='')}{f'/{action}' if action else ''}"


def _job(facts: dict[str, Any]) -> ServiceJob:
    fields: dict[str, Any] = {name: facts[name] for name in ServiceJob.__dataclass_fields__}
    return ServiceJob(**{**fields, "started": facts["started"] or "", "ended": facts["ended"] or ""})


@contextmanager
def _opened(address: str, *, is_endless: bool = False) -> Iterator[httpx2.Client]:
    if not address.startswith(("http://", "https://")):
        raise SpecError(f"--service {address}: expected the URL of a Headworks service, as https://HOST:8470")
    require_no_credentials(address)
    token = _token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = httpx2.Timeout(None if is_endless else ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    try:
        with httpx2.Client(base_url=address.rstrip("/"), headers=headers, timeout=timeout) as http:
            yield http
    except (httpx2.TransportError, httpx2.InvalidURL) as error:
        raise UnreachableError(
            f"no Headworks service answers at {address}: {error or type(error).__name__}\nCheck the host and the port "
            "(8470 unless `headworks serve` was given another --port), that the service runs, and that a tunnel or "
            "firewall lets you through. A job that was being submitted may have been accepted: submitting it again "
            "does no harm."
        ) from error


def _token() -> str:
    if token := os.environ.get(TOKEN, "").strip():
        return token
    file = TOKEN_FILE.expanduser()
    try:
        return file.read_text("utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the token in {file} cannot be read: {error}") from error


def _json(answer: httpx2.Response) -> Any:
    checked = _checked(answer)
    try:
        return checked.json()
    except ValueError as error:
        raise UnreachableError(f"what answers at {answer.url} is no Headworks service: it sends no JSON") from error


def _checked(answer: httpx2.Response) -> httpx2.Response:
    """The answer, or the service's error as the same class with the same words."""
    if answer.is_redirect:
        raise UserError(f"{answer.url} redirects to {answer.headers.get('location', '?')}; give that address")
    if not answer.is_error:
        return answer
    try:
        facts = answer.json()["error"]
        kind, message = str(facts["type"]), str(facts["message"])
    except (ValueError, LookupError, TypeError):
        raise UnreachableError(
            f"what answers at {answer.url} is no Headworks service: status {answer.status_code}"
        ) from None
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, HeadworksError):
        raise found(message)
    raise (JobError if answer.status_code >= 500 else UserError)(message)
