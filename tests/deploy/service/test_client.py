"""The client against a service in a thread, its cluster out of reach, and against what is no service."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
import yaml
from ray_head import free_ports

import headworks
from deploy import client
from deploy.service.access import Role
from deploy.service.app import build_service, create_app
from deploy.service.context import Service
from deploy.service.limits import Slots
from deploy.service.settings import read_settings
from schemas.errors import ForbiddenError, JobError, MismatchError, MissingError, SpecError, UnreachableError, UserError
from schemas.pipeline import JOB_ADAPTER


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Service]]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(client.TOKEN, raising=False)
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump({"teams": {"lab": {"write": [str(tmp_path)]}}}))
    (tmp_path / "serve.yaml").write_text(
        f"{{clusters: {{a: {{address: 'http://127.0.0.1:9'}}}}, database: 'sqlite:///{tmp_path}/s.db', "
        f"policy: {tmp_path}/policy.yaml}}"
    )
    service = build_service(read_settings(tmp_path / "serve.yaml"))
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}", service
    server.should_exit = True
    thread.join()


def job_of(folder: Path, **changes: Any) -> Any:
    spec = {
        "kind": "train", "name": "sae", "store": f"{folder}/store", "output": f"{folder}/out",
        "dictionaries": [{"name": "d", "sources": ["h"], "num_latents": 64}], **changes,
    }  # fmt: skip
    return JOB_ADAPTER.validate_python(spec)


def test_errors_come_back_as_they_were_raised(
    running: tuple[str, Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, service = running
    assert client.is_service(url)
    with pytest.raises(UserError, match="HEADWORKS_TOKEN"):
        client.jobs(url)
    (tmp_path / ".headworks").mkdir()
    (tmp_path / ".headworks" / "token").write_text(service.tokens.create("me", Role.SUBMITTER, "lab") + "\n")
    assert client.jobs(url) == []
    monkeypatch.chdir(tmp_path)
    job = headworks.submit(job_of(tmp_path, output="out"), url)
    assert isinstance(job, client.ServiceJob)
    assert (job.status, job.owner, job.cluster) == ("ACCEPTED", "me", "a")
    assert client.submit(job_of(tmp_path), url).id == job.id
    with pytest.raises(MismatchError, match="only a job that has ended is retried"):
        client.retry(job.id, url)
    with pytest.raises(MismatchError, match=f"as {job.id}"):
        client.submit(job_of(tmp_path), url, attempt=4)
    with pytest.raises(ForbiddenError, match=r"^output: '/etc/x'"):
        client.submit(job_of(tmp_path, output="/etc/x"), url)
    with pytest.raises(SpecError, match=r"^cluster: no cluster is named 'b'"):
        client.submit(job_of(tmp_path, name="other"), url, cluster="b")
    with pytest.raises(MissingError, match="did you mean"):
        client.status(job.id[:-1] + "7", url)
    with pytest.raises(MissingError, match=r"no job '../x': expected letters"):
        client.status("../x", url)
    assert client.stop(job.id, url)
    assert not client.stop(job.id, url)
    assert client.logs(job.id, url) == ""
    with pytest.raises(JobError, match="stopped before the cluster had it"):
        client.follow(job.id, url, lambda text: None)
    assert client.retry(job.id, url).attempt == 1
    assert [each.attempt for each in client.jobs(url)] == [1, 0]
    monkeypatch.setenv(client.TOKEN, "hw_wrong")
    with pytest.raises(UserError, match="not valid"):
        client.jobs(url)


def test_a_log_stream_has_its_slot_until_its_reader_goes(
    running: tuple[str, Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, service = running
    service.streams = Slots(total=9, of_one=1)
    secret = service.tokens.create("me", Role.SUBMITTER, "lab")
    monkeypatch.setenv(client.TOKEN, secret)
    job = client.submit(job_of(tmp_path), url)  # its cluster is out of reach, so its log goes on without a line
    path = f"{url}/api/v1/jobs/{job.id}/logs?follow=true"
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx2.stream("GET", path, headers=headers) as first:
        assert first.status_code == 200
        second = httpx2.get(path, headers=headers)
        assert second.status_code == 409
        assert "1 log streams of me are open" in second.json()["error"]["message"]
    deadline = time.monotonic() + 20
    while True:
        with httpx2.stream("GET", path, headers=headers) as again:
            if again.status_code == 200:
                break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    client.stop(job.id, url)


def test_what_is_no_service_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "index.html").write_text("<h1>Something else</h1>")
    with pytest.raises(SpecError, match="expected the URL of a Headworks service"):
        client.jobs("127.0.0.1:8470")
    with pytest.raises(UserError, match="credentials"):
        client.jobs("http://me:secret@127.0.0.1:8470")
    with pytest.raises(UnreachableError, match=r"no Headworks service answers at http://127.0.0.1:9: .*refused"):
        client.jobs("http://127.0.0.1:9")
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Quiet)
    thread = threading.Thread(target=other.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{other.server_address[1]}"
        assert not client.is_service(url)
        with pytest.raises(UnreachableError, match="is no Headworks service: status 404"):
            client.jobs(url)
    finally:
        other.shutdown()
        thread.join()
        other.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
