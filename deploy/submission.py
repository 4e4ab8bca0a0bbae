"""Jobs on a cluster through Ray's Jobs API: submit, list, follow, stop.

The spec travels as data: ``job.json`` in the job's working directory, run by ``deploy.entry`` of the Headworks that is
installed on the cluster. Nothing of a spec becomes a command line or a runtime environment.

A job's id is made of its name, the fingerprint of what it computes and the attempt, so the same job submitted twice is
refused while the first still runs, whoever submits it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.spec_paths import anchored
from schemas.errors import JobError, MismatchError, MissingError, SpecError, UnreachableError, UserError, nearest
from schemas.fingerprint import fingerprint
from schemas.pipeline import AnyJob

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 60.0
JOB_FILE = "job.json"
MAX_MESSAGE_LINES = 20
PYTHON = "HEADWORKS_PYTHON"
"""Environment variable of the cluster: the interpreter that has Headworks, where ``python`` on its PATH has not."""

_ENDED = {"SUCCEEDED", "FAILED", "STOPPED", "LOST"}
"""``LOST`` only through the service, of a job that its cluster has forgotten."""
_MARK = "headworks_fingerprint"
_OURS = "headworks: "
"""How a message of ``exits`` begins; further lines of it may follow."""
_NO_AGENT = "No available agent to submit job"
"""What Ray says where the head cannot start a job's driver, in an answer like that to a wrong request."""
_RAY_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True)
class ClusterJob:
    """A job as the cluster knows it."""

    id: str
    name: str
    kind: str
    attempt: int
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    started: str
    """ISO 8601, UTC; empty before the start."""
    ended: str
    """ISO 8601, UTC; empty before the end."""
    fingerprint: str
    message: str
    """What Ray says of the status."""

    @property
    def has_ended(self) -> bool:
        """Nothing more will happen."""
        return self.status in _ENDED

    def facts(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def job_fingerprint(job: AnyJob) -> str:
    """Of what a job computes and where it puts it; resources are left out."""
    return fingerprint(_without_resources(job.model_dump(mode="json")))


def _without_resources(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_resources(item) for key, item in value.items() if key not in {"workers", "cluster"}}
    if isinstance(value, list):
        return [_without_resources(item) for item in value]
    return value


def submit(job: AnyJob, address: str, *, attempt: int | None = None) -> ClusterJob:
    """Hand a job to the cluster and return without waiting.

    Relative paths are made absolute from the current directory; the cluster must see the same storage under them.
    ``attempt`` None: the first that is free.

    Raises:
        MismatchError: the same job is still running, or that attempt was there already.
        UnreachableError: nothing answers at the address.
    """
    client = connect(address)
    job = anchored(job, Path.cwd())
    mark = job_fingerprint(job)
    number = next_attempt([other for other in known_jobs(client) if other.fingerprint == mark], attempt)
    identifier = job_id(job.name, mark, number)
    hand_over(client, job.model_dump(mode="json"), mark, number)
    return status(identifier, address)


def job_id(name: str, mark: str, attempt: int) -> str:
    """The id of an attempt, here and as Ray's submission id; ``mark`` is the job's fingerprint."""
    return f"{name}-{mark[:12]}-{attempt}"


def hand_over(client: Any, job: dict[str, Any], mark: str, attempt: int) -> None:
    """Give one attempt to the cluster; ``job`` is the spec as plain data, with absolute paths.

    Raises:
        UserError: the cluster did not take it, since it has that id already or for reasons of its own.
        UnreachableError: no answer came; the cluster may have it.
    """
    with tempfile.TemporaryDirectory(prefix="headworks-submit-") as folder, _explained(client.get_address()):
        # The attempt makes the upload's content unlike that of any other: Ray drops packages nobody uses.
        Path(folder, JOB_FILE).write_text(json.dumps({"job": job, "attempt": attempt}, indent=1) + "\n", "utf-8")
        client.submit_job(
            entrypoint=_entrypoint(),
            submission_id=job_id(job["name"], mark, attempt),
            runtime_env={"working_dir": folder},
            metadata={_MARK: mark, "name": job["name"], "kind": job["kind"], "attempt": str(attempt)},
        )


def next_attempt(same: Sequence[ClusterJob], wanted: int | None) -> int:
    """The number of a further attempt, beside the others of the same job.

    Raises:
        MismatchError: one of them has not ended, or has the number that is wanted.
    """
    for other in same:
        if not other.has_ended:
            raise MismatchError(
                f"this job is {other.status.lower()} on the cluster already, as {other.id}; two of them would write to "
                "the same output. Watch it (`headworks jobs status`), or stop it first (`headworks jobs stop`)"
            )
        if other.attempt == wanted:
            raise MismatchError(f"attempt {wanted} of this job was there already, as {other.id} ({other.status})")
    return max((other.attempt + 1 for other in same), default=0) if wanted is None else wanted


def _entrypoint() -> str:
    """A fixed command: the first interpreter that has Headworks runs the entry point on the job file.

    The submitter's own comes last; it is the right one where the cluster is on this machine or has the same image.
    """
    candidates = f'"${PYTHON}" python python3 {shlex.quote(sys.executable)}'
    return (
        f"for p in {candidates}; do "
        'command -v "$p" >/dev/null 2>&1 && "$p" -c "import deploy.entry" >/dev/null 2>&1 '
        f'&& exec "$p" -m deploy.entry {JOB_FILE}; done; '
        f"echo 'Headworks is not installed on the head node: no python on the PATH can import it; install it there, or "
        f"set {PYTHON} before ray start' >&2; exit 2"
    )


def jobs(address: str) -> list[ClusterJob]:
    """Headworks' jobs on the cluster, newest first."""
    return sorted(known_jobs(connect(address)), key=lambda job: job.started or "9", reverse=True)


def status(identifier: str, address: str) -> ClusterJob:
    """One job.

    Raises:
        MissingError: the cluster has no such job.
    """
    found = known_jobs(connect(address))
    for job in found:
        if job.id == identifier:
            return job
    known = [job.id for job in found]
    raise MissingError(
        f"no job {identifier!r} at {address}{nearest(identifier, known)}; `headworks jobs list` names them"
    )


def logs(identifier: str, address: str) -> str:
    """What the job has written so far."""
    status(identifier, address)
    return read_logs(connect(address), identifier)


def read_logs(client: Any, identifier: str) -> str:
    """What a job that the cluster knows has written so far."""
    with _explained(client.get_address()):
        text: str = client.get_job_logs(identifier)
    return text


async def tail(client: Any, identifier: str) -> AsyncIterator[str]:
    """The log of a job that the cluster knows, from its beginning, as it comes, until the job ends."""
    with _explained(client.get_address()):
        async for lines in client.tail_job_logs(identifier):
            yield lines


def follow(identifier: str, address: str, write: Callable[[str], None]) -> ClusterJob:
    """Write the job's log as it comes, until the job ends.

    Raises:
        JobError: the job failed or was stopped.
    """
    status(identifier, address)
    client = connect(address)

    async def write_all() -> None:
        async for lines in tail(client, identifier):
            write(lines)

    asyncio.run(write_all())
    job = status(identifier, address)
    if job.status != "SUCCEEDED":
        raise JobError(f"{identifier} {job.status.lower()}: {job.message}")
    return job


def stop(identifier: str, address: str) -> bool:
    """Ask a job to stop, and return whether it was running. What it has committed is kept."""
    job = status(identifier, address)
    return not job.has_ended and ask_to_stop(connect(address), identifier)


def ask_to_stop(client: Any, identifier: str) -> bool:
    """Ask for the end of a job that the cluster knows, and return whether it was running."""
    with _explained(client.get_address()):
        return bool(client.stop_job(identifier))


def session_of(client: Any) -> str:
    """The name of the cluster from this start to its next."""
    with _explained(client.get_address()):
        answer = client._do_request("GET", "/api/version")
        answer.raise_for_status()
        return str(answer.json().get("session_name", ""))


def connect(address: str, *, token: str = "", verify: bool | str = True) -> Any:
    """Ray's ``JobSubmissionClient``, whose requests end after ``REQUEST_TIMEOUT_S``.

    ``token`` is that of the cluster, empty: what Ray finds in the environment; ``verify`` as in requests: whether to
    check the certificate, or the file of those to trust.

    Raises:
        SpecError: not an address of a Jobs API.
        UnreachableError: nothing answers there.
    """
    if not address.startswith(("http://", "https://")):
        raise SpecError(f"--address {address}: expected the URL of the cluster's dashboard, as http://HOST:8265")
    import requests

    try:
        # Ray's own client waits without end where a firewall drops packets.
        requests.get(f"{address.rstrip('/')}/api/version", timeout=CONNECT_TIMEOUT_S, verify=verify)
    except requests.RequestException as error:
        raise UnreachableError(
            f"no Ray Jobs API answers at {address}: {_reason(error)}\nCheck the host and the port (8265 unless "
            "`ray start` was given another --dashboard-port), that the cluster runs with its dashboard, and that a "
            "tunnel or firewall lets you through."
        ) from error
    if not token:
        _present_token()
    headers = {"Authorization": f"Bearer {token}"} if token else None
    with _explained(address), _unset(_RAY_ADDRESSES):
        return _client_class()(address, headers=headers, verify=verify)


@cache
def _client_class() -> Any:
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Ray's own waits without end for an answer that does not come."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, timeout=REQUEST_TIMEOUT_S, **options)

    return Client


def _present_token() -> None:
    """Where a token lies and no mode is set, ``ray start`` asks for the token: so it must be sent."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if os.environ.get("RAY_AUTH_TOKEN") or file.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _reason(error: Exception) -> str:
    """The innermost cause, without the address of a Python object in it."""
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__
    return str(cause)


@contextmanager
def _unset(names: tuple[str, ...]) -> Iterator[None]:
    """Ray prefers these variables to the address that it is given; the given one is meant."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """The client's errors in our words: a refusal comes as RuntimeError that holds the server's traceback."""
    from aiohttp import ClientError
    from ray.exceptions import AuthenticationError
    from requests import RequestException

    try:
        yield
    except AuthenticationError as error:
        raise UserError(
            f"the cluster at {address} asks for a token, and the one from here is none or another: put the cluster's "
            "(`ray get-auth-token` on its head) into RAY_AUTH_TOKEN, or its file's name into RAY_AUTH_TOKEN_PATH"
        ) from error
    except (ConnectionError, RequestException, ClientError) as error:
        raise UnreachableError(f"the cluster at {address} stopped answering: {_reason(error)}") from error
    except RuntimeError as error:
        if _NO_AGENT in str(error):
            raise UnreachableError(
                f"the head node of the cluster at {address} takes no jobs: its dashboard agent has not started. Just "
                "after a start it may only need time; otherwise see dashboard_agent.log there. Of two Rays on one "
                "machine the second needs `ray start --dashboard-agent-listen-port`"
            ) from error
        raise UserError(f"the cluster at {address} refused: {last_words(str(error))}") from error


def last_words(text: str) -> str:
    """What a message of Ray's says in the end: the last one of ours in it, whole, else its last line."""
    lines = [line for line in text.replace("\\n", "\n").splitlines() if line.strip(" .")]
    ours = [index for index, line in enumerate(lines) if line.startswith(_OURS)]
    kept = lines[ours[-1] :][:MAX_MESSAGE_LINES] if ours else lines[-1:]
    return "\n".join(kept).strip()


def known_jobs(client: Any) -> list[ClusterJob]:
    """Headworks' jobs on the cluster, in no order."""
    with _explained(client.get_address()):
        found = client.list_jobs()
    return [_view(details) for details in found if _MARK in (details.metadata or {})]


def _view(details: Any) -> ClusterJob:
    facts = details.metadata
    return ClusterJob(
        id=details.submission_id,
        name=facts["name"],
        kind=facts["kind"],
        attempt=int(facts["attempt"]),
        status=str(details.status.value if hasattr(details.status, "value") else details.status),
        started=_time(details.start_time),
        ended=_time(details.end_time),
        fingerprint=facts[_MARK],
        message=last_words(details.message or ""),
    )


def _time(milliseconds: int | None) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds") if milliseconds else ""
