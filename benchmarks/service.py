"""The service under load, before a real Ray head: `headworks serve` as a process, SQLite, tokens and a policy.

1. ``SUBMITTED`` submissions at the same moment, each of a job of its own, by ten tokens; then the same once more, while
   the first are under way. The head's interpreter of jobs is a script that notes each run, so runs are counted where
   they happen: a job that was accepted and did not run once is an error, and so is an id that was given twice.
2. Jobs up to ``LISTED``, accepted for a cluster that does not answer, by ten clients one after the other each; then the
   list with all of them in one answer, and the page of 50 that a browser asks for, while the runner works.
3. ``STREAMS`` clients that follow the log of one running job, which writes ``LINES`` lines with the time in each. The
   lag is from that time to the line's arrival at a client. A line that a client does not get, or gets twice, is an
   error.

Clients share a process and connections are opened anew for each submission. Everything listens on loopback addresses
only and ends with this process; each step has an end in time.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from deploy.service.access import Role, Tokens
from deploy.service.database import open_database
from deploy.submission import job_fingerprint, job_id
from schemas.pipeline import JOB_ADAPTER

SUBMITTED, LISTED, PAGES, STREAMS, LINES, TOKENS = 100, 1000, 50, 50, 200, 10
LINE_S, LONGEST_S = 0.05, 300.0

_INTERPRETER = """#!/bin/sh
# As `python -c "import deploy.entry"` and `python -m deploy.entry job.json`.
[ "$1" = "-m" ] || exit 0
name=$(sed -n 's/^  "name": "\\(.*\\)",$/\\1/p' job.json | head -1)
echo "$name" >> {folder}/runs
[ "$name" = talker ] || exit 0
while [ ! -e {folder}/go ]; do sleep 0.1; done
line=0
while [ $line -lt {lines} ]; do echo "line $line $(date +%s%3N)"; line=$((line+1)); sleep {line_s}; done
"""


class Site:
    """The service's process and what clients of it need."""

    def __init__(self, folder: Path, url: str, secrets: list[str]) -> None:
        self.folder = folder
        self.url = url
        self._secrets = secrets

    def client(self, number: int = 0) -> httpx2.AsyncClient:
        """With one of the tokens; to be closed."""
        headers = {"Authorization": f"Bearer {self._secrets[number % len(self._secrets)]}"}
        limits = httpx2.Limits(max_connections=None)
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=LONGEST_S, limits=limits)

    def job(self, name: str) -> dict[str, Any]:
        """A small spec."""
        return {
            "kind": "train", "name": name, "store": f"{self.folder}/lab/store", "output": f"{self.folder}/lab/{name}",
            "dictionaries": [{"name": "d", "sources": ["h"], "num_latents": 64}],
        }  # fmt: skip

    def identifier(self, name: str) -> str:
        """What the first attempt of a job is called, known before it is submitted."""
        return job_id(name, job_fingerprint(JOB_ADAPTER.validate_python(self.job(name))), 0)


@contextmanager
def served(folder: Path) -> Iterator[Site]:
    """`headworks serve` over a head that was started for it."""
    # Only there is a head started and ended as tests do it.
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "deploy"))
    import ray_head

    interpreter = folder / "python"
    interpreter.write_text(
        _INTERPRETER.replace("{folder}", str(folder)).replace("{lines}", str(LINES)).replace("{line_s}", str(LINE_S))
    )
    interpreter.chmod(0o755)
    (folder / "lab").mkdir()
    (folder / "policy.yaml").write_text(json.dumps({"teams": {"lab": {"write": [f"{folder}/lab"]}}}))
    database = f"sqlite:///{folder}/service.db"
    secrets = [Tokens(open_database(database)).create(f"t{n}", Role.SUBMITTER, "lab") for n in range(TOKENS)]
    with ray_head.started_head(HEADWORKS_PYTHON=str(interpreter)) as head:
        port, away = ray_head.free_ports(2)
        config = folder / "serve.yaml"
        config.write_text(json.dumps({
            "clusters": {"real": {"address": head.url}, "away": {"address": f"http://127.0.0.1:{away}"}},
            "database": database, "policy": str(folder / "policy.yaml"),
        }))  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [ray_head.BIN / "headworks", "serve", "--port", str(port), "--config", config],
                env=head.environment, stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip
        try:
            yield Site(folder, f"http://127.0.0.1:{port}", secrets)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


async def until(found: Callable[[], Awaitable[bool]], what: str) -> None:
    """Raises: TimeoutError: it does not come."""
    deadline = time.monotonic() + LONGEST_S
    while not await found():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {LONGEST_S:g} s")
        await asyncio.sleep(0.5)


async def answers(site: Site) -> bool:
    async with site.client() as client:
        try:
            return (await client.get("/healthz")).is_success
        except httpx2.TransportError:
            return False


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: the values that such a share of all lies below, and the largest."""
    ranked = sorted(seconds)
    shares = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
    found = {name: ranked[min(len(ranked) - 1, int(share * len(ranked)))] for name, share in shares.items()}
    return {name: round(1000 * value, 1) for name, value in found.items()} | {"max_ms": round(1000 * ranked[-1], 1)}


async def timed(client: httpx2.AsyncClient, method: str, path: str, **options: Any) -> tuple[float, httpx2.Response]:
    began = time.perf_counter()
    answer = await client.request(method, path, **options)
    return time.perf_counter() - began, answer


async def submit(
    site: Site, client: httpx2.AsyncClient, name: str, *, again: bool = False, cluster: str = "real"
) -> float:
    """Seconds until the answer. Raises: RuntimeError: another answer than the one that there must be."""
    body = {"spec": site.job(name), "attempt": 0, "cluster": cluster}
    seconds, answer = await timed(client, "POST", "/api/v1/jobs", json=body)
    # Again: it lives and is given back, or has ended and its attempt is there already.
    if answer.status_code not in ({200, 409} if again else {201}):
        raise RuntimeError(f"{name}: {answer.status_code} {answer.text}")
    if answer.is_success and answer.json()["id"] != site.identifier(name):
        raise RuntimeError(f"{name} was accepted as {answer.json()['id']}")
    return seconds


async def submit_at_once(site: Site, names: list[str], *, again: bool = False) -> list[float]:
    clients = [site.client(number) for number in range(len(names))]
    try:
        tasks = [submit(site, client, name, again=again) for client, name in zip(clients, names, strict=True)]
        return list(await asyncio.gather(*tasks))
    finally:
        await asyncio.gather(*(client.aclose() for client in clients))


async def submissions(site: Site) -> dict[str, Any]:
    names = [f"load-{number}" for number in range(SUBMITTED)]
    began = time.perf_counter()
    first = await submit_at_once(site, names)
    again = await submit_at_once(site, names, again=True)

    async def are_over() -> bool:
        async with site.client() as client:
            found = (await client.get("/api/v1/jobs", params={"limit": 1000, "status": "SUCCEEDED"})).json()
            return bool(found["total"] >= SUBMITTED)

    await until(are_over, "the end of the jobs")
    over_s = time.perf_counter() - began
    runs = Counter((site.folder / "runs").read_text().split())
    if runs != dict.fromkeys(names, 1):
        wrong = {name: runs[name] for name in [*names, *runs] if runs[name] != 1 or name not in names}
        raise RuntimeError(f"jobs that did not run once: {wrong}")
    return {
        "submitted": SUBMITTED, "ran_once": len(runs), "first": percentiles(first), "again": percentiles(again),
        "all_ended_s": round(over_s, 1),
    }  # fmt: skip


async def listing(site: Site) -> dict[str, Any]:
    missing = [f"wait-{number}" for number in range(SUBMITTED, LISTED)]

    async def some(number: int) -> list[float]:
        async with site.client(number) as client:
            return [await submit(site, client, name, cluster="away") for name in missing[number::TOKENS]]

    began = time.perf_counter()
    accepted = [seconds for each in await asyncio.gather(*(some(n) for n in range(TOKENS))) for seconds in each]
    rate = len(accepted) / (time.perf_counter() - began)
    found: dict[str, list[float]] = {"all": [], "page": []}
    async with site.client() as client:
        for _ in range(PAGES):
            for name, limit in (("all", LISTED), ("page", 50)):
                seconds, answer = await timed(client, "GET", "/api/v1/jobs", params={"limit": limit})
                found[name].append(seconds)
                listed = [job["id"] for job in answer.json()["jobs"]]
                if len(set(listed)) != limit or answer.json()["total"] != LISTED:
                    raise RuntimeError(f"the list has {len(set(listed))} of {LISTED} jobs")
    return {
        "listed": LISTED, "accepted_per_s": round(rate, 1), "accepted": percentiles(accepted),
        "whole_list": percentiles(found["all"]), "page_of_50": percentiles(found["page"]),
    }  # fmt: skip


async def follow(site: Site, identifier: str, begun: Callable[[], None]) -> list[float]:
    """Seconds from the writing of each line to its arrival."""
    lags, rest = [], ""
    async with site.client() as client:
        path, query = f"/api/v1/jobs/{identifier}/logs", {"follow": "true"}
        async with client.stream("GET", path, params=query) as answer:
            answer.raise_for_status()
            begun()
            async for text in answer.aiter_text():
                now_s = time.time()
                *lines, rest = (rest + text).split("\n")
                for line in lines:
                    if line.startswith("line "):
                        _, number, written_ms = line.split()
                        if int(number) != len(lags):
                            raise RuntimeError(f"a follower got line {number} after {len(lags)} lines")
                        lags.append(now_s - int(written_ms) / 1000)
    if len(lags) != LINES:
        raise RuntimeError(f"a follower got {len(lags)} of {LINES} lines")
    return lags


async def streams(site: Site) -> dict[str, Any]:
    async with site.client() as client:
        await submit(site, client, "talker")
        identifier, num_begun = site.identifier("talker"), 0

        async def is_running() -> bool:
            return bool((await client.get(f"/api/v1/jobs/{identifier}")).json()["status"] == "RUNNING")

        await until(is_running, "the running job")

        def begun() -> None:
            nonlocal num_begun
            num_begun += 1
            if num_begun == STREAMS:
                (site.folder / "go").touch()

        pages: list[float] = []

        async def look() -> None:
            while True:
                pages.append((await timed(client, "GET", "/api/v1/jobs", params={"limit": 50}))[0])
                await asyncio.sleep(0.2)

        looking = asyncio.create_task(look())
        async with asyncio.timeout(LONGEST_S):
            lags = await asyncio.gather(*(follow(site, identifier, begun) for _ in range(STREAMS)))
        looking.cancel()
    lag = percentiles([seconds for each in lags for seconds in each])
    return {
        "clients": STREAMS, "lines": LINES, "line_every_s": LINE_S, "lag": lag,
        "page_of_50_meanwhile": percentiles(pages),
    }  # fmt: skip


async def _measure(site: Site) -> dict[str, Any]:
    await until(lambda: answers(site), "an answer of the service")
    return {"submissions": await submissions(site), "lists": await listing(site), "log_streams": await streams(site)}


def measure() -> dict[str, Any]:
    """See the module."""
    with tempfile.TemporaryDirectory(prefix="hw-load-") as name, served(Path(name)) as site:
        return asyncio.run(_measure(site))
