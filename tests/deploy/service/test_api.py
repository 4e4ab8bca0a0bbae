"""The API in this process, its cluster out of reach: what is accepted, what is refused and in which words."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from deploy.service.access import Role
from deploy.service.app import build_service, create_app, require_guarded
from deploy.service.context import Service
from deploy.service.settings import Settings, read_settings
from schemas.errors import MissingError, SpecError, UserError

NOBODY = "http://127.0.0.1:9"


def spec_of(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "train", "name": name, "store": f"{folder}/store", "output": f"{folder}/out/{name}",
        "dictionaries": [{"name": "d", "sources": ["h"], "num_latents": 64}], **changes,
    }  # fmt: skip


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """Two teams; the first may use the folder ``lab``, the second ``other``."""
    for team in ("lab", "other"):
        (tmp_path / team).mkdir()
    policy = {"teams": {team: {"write": [str(tmp_path / team)]} for team in ("lab", "other")}}
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
    (tmp_path / "serve.yaml").write_text(
        yaml.safe_dump(
            {
                "clusters": {"a": {"address": NOBODY}, "b": {"address": NOBODY}}, "poll_s": 0.05,
                "database": f"sqlite:///{tmp_path}/service.db", "policy": str(tmp_path / "policy.yaml"),
            }
        )
    )  # fmt: skip
    return build_service(read_settings(tmp_path / "serve.yaml"))


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def token(service: Service, name: str, role: Role = Role.SUBMITTER, team: str = "lab") -> dict[str, str]:
    return {"Authorization": f"Bearer {service.tokens.create(name, role, team)}"}


def error_of(answer: Any, status: int) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    facts: dict[str, str] = answer.json()["error"]
    assert set(facts) <= {"type", "message", "field"}
    return facts


def test_a_job_is_accepted_once_waits_for_its_cluster_and_is_stopped(
    service: Service, client: TestClient, tmp_path: Path
) -> None:
    me = token(service, "me")
    body = {"spec": spec_of("sae", tmp_path / "lab")}
    first = client.post("/api/v1/jobs", json=body, headers=me)
    assert first.status_code == 201, first.text
    job = first.json()
    assert job["status"] == "ACCEPTED"
    assert job["id"] == f"sae-{job['fingerprint'][:12]}-0"
    assert (job["cluster"], job["owner"], job["team"]) == ("a", "me", "lab")
    again = client.post("/api/v1/jobs", json=body, headers=me)
    assert (again.status_code, again.json()["id"]) == (200, job["id"])
    elsewhere = error_of(client.post("/api/v1/jobs", json={**body, "cluster": "b"}, headers=me), 409)
    assert "alive already" in elsewhere["message"]

    deadline = time.monotonic() + 20
    while (shown := client.get(f"/api/v1/jobs/{job['id']}", headers=me).json())["status"] != "WAITING":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert f"no Ray Jobs API answers at {NOBODY}" in shown["message"]
    assert shown["spec"]["output"] == body["spec"]["output"]
    assert [each["attempt"] for each in shown["attempts"]] == [0]
    assert client.get(f"/api/v1/jobs/{job['id']}/logs", headers=me).text == ""
    assert error_of(client.post(f"/api/v1/jobs/{job['id']}/retry", headers=me), 409)["type"] == "MismatchError"

    stopped = client.post(f"/api/v1/jobs/{job['id']}/stop", headers=me)
    assert (stopped.status_code, stopped.json()["status"]) == (202, "STOPPED")
    assert client.get(f"/api/v1/jobs/{job['id']}/logs", params={"follow": True}, headers=me).text == ""
    there = error_of(client.post("/api/v1/jobs", json={**body, "attempt": 0}, headers=me), 409)
    assert "attempt 0 of this job was there already" in there["message"]
    retried = client.post(f"/api/v1/jobs/{job['id']}/retry", headers=me)
    assert (retried.status_code, retried.json()["attempt"]) == (201, 1)
    assert retried.json()["id"] == f"{job['id'][:-2]}-1"
    listed = client.get("/api/v1/jobs", params={"limit": 1}, headers=me).json()
    assert (listed["total"], [each["attempt"] for each in listed["jobs"]]) == (2, [1])
    only = client.get("/api/v1/jobs", params={"status": "STOPPED", "kind": "train", "name": "sae"}, headers=me).json()
    assert [each["id"] for each in only["jobs"]] == [job["id"]]
    actions = [(record.action, record.outcome) for record in service.audit.read()]
    assert ("job.submit", "ok") in actions
    assert ("job.stop", "ok") in actions
    assert ("job.submit", "MismatchError") in actions


def test_what_was_accepted_is_there_after_a_restart(service: Service, client: TestClient, tmp_path: Path) -> None:
    me = token(service, "me")
    job = client.post("/api/v1/jobs", json={"spec": spec_of("kept", tmp_path / "lab")}, headers=me).json()
    anew = build_service(service.settings)
    try:
        assert anew.jobs.get(job["id"]).progress.state in ("ACCEPTED", "WAITING")
    finally:
        anew.engine.dispose()


def test_wrong_fields_are_named(service: Service, client: TestClient, tmp_path: Path) -> None:
    me = token(service, "me")

    def refused(spec: Any, status: int = 422, **others: Any) -> dict[str, str]:
        return error_of(client.post("/api/v1/jobs", json={"spec": spec, **others}, headers=me), status)

    good = spec_of("sae", tmp_path / "lab")
    assert refused({**good, "output": "runs/sae"})["field"] == "output"
    assert "relative path" in refused({**good, "store": "~/store"})["message"]
    assert refused({**good, "batch_rows": "many"})["field"] == "batch_rows"
    assert "did you mean 'batch_rows'" in refused({**good, "batch_row": 5})["message"]
    assert "did you mean 'train'" in refused({**good, "kind": "trian"})["message"]
    assert refused(good, cluster="c")["field"] == "cluster"
    assert "expected one of ['a', 'b']" in refused(good, cluster="c")["message"]
    assert refused(good, attempt=-1)["field"] == "attempt"
    nested = {"kind": "pipeline", "name": "p", "output": f"{tmp_path}/lab/p", "jobs": [{**good, "output": "o"}]}
    assert refused(nested)["field"] == "jobs[0].output"
    outside = refused({**good, "output": "/etc/out"}, 403)
    assert (outside["type"], outside["field"]) == ("ForbiddenError", "output")
    assert "is below no place that team 'lab' may write" in outside["message"]
    not_json = client.post("/api/v1/jobs", content="{", headers={**me, "Content-Type": "application/json"})
    assert "not JSON" in error_of(not_json, 422)["message"]
    assert service.jobs.counts() == {}


def test_roles_and_teams_are_kept_apart(service: Service, client: TestClient, tmp_path: Path) -> None:
    me, viewer = token(service, "me"), token(service, "viewer", Role.VIEWER)
    other, admin = token(service, "other", team="other"), token(service, "root", Role.ADMIN, "other")
    body = {"spec": spec_of("sae", tmp_path / "lab")}
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic eDp5"}):
        answer = client.get("/api/v1/jobs", headers=headers)
        assert error_of(answer, 401)["type"] == "Unauthorized"
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "submitter or more" in error_of(client.post("/api/v1/jobs", json=body, headers=viewer), 403)["message"]
    job = client.post("/api/v1/jobs", json=body, headers=me).json()
    assert client.get(f"/api/v1/jobs/{job['id']}", headers=viewer).status_code == 200
    for method, path in (("GET", ""), ("GET", "/logs"), ("POST", "/stop"), ("POST", "/retry")):
        answer = client.request(method, f"/api/v1/jobs/{job['id']}{path}", headers=other)
        assert error_of(answer, 404)["type"] == "MissingError"
    assert client.get("/api/v1/jobs", headers=other).json()["total"] == 0
    assert client.get("/api/v1/jobs", params={"team": "lab"}, headers=other).json()["total"] == 0
    assert client.get("/api/v1/jobs", params={"team": "lab"}, headers=admin).json()["total"] == 1
    service.tokens.revoke("me")
    assert client.get("/api/v1/jobs", headers=me).status_code == 401


def test_stores_are_looked_for_in_allowed_places_only(service: Service, client: TestClient, tmp_path: Path) -> None:
    me = token(service, "me", Role.VIEWER)
    for path in ("stores", "store", "dictionaries", "dictionary", "evaluation"):
        answer = client.get(f"/api/v1/{path}", params={"url": str(tmp_path / "other")}, headers=me)
        assert error_of(answer, 403)["field"] == "url"
    assert client.get("/api/v1/stores", headers=me).json() == {
        "stores": [], "readers": {}, "checks": {}, "total": 0,
    }  # fmt: skip
    assert client.get("/api/v1/dictionaries", headers=me).json() == {"dictionaries": [], "total": 0}
    missing = client.get("/api/v1/dictionary", params={"url": str(tmp_path / "lab" / "x")}, headers=me)
    assert "no dictionary at" in error_of(missing, 404)["message"]
    (tmp_path / "lab" / "evaluation.json").write_text(json.dumps({"dictionaries": {}}))
    found = client.get("/api/v1/evaluation", params={"url": str(tmp_path / "lab")}, headers=me)
    assert found.json() == {"dictionaries": {}}


def test_health_metrics_and_errors_have_their_forms(client: TestClient) -> None:
    assert client.get("/healthz").json()["database"] == "ok"
    assert client.get("/readyz").json()["clusters"] == {"a": False, "b": False}
    assert error_of(client.get("/nowhere"), 404)["type"] == "NotFound"
    assert error_of(client.delete("/api/v1/jobs"), 405)["type"] == "MethodNotAllowed"
    numbers = client.get("/metrics").text
    assert 'headworks_service_jobs{cluster="a",state="RUNNING"} 0.0' in numbers
    assert 'headworks_service_requests_total{method="GET",route="/healthz",status="200"} 1.0' in numbers
    assert 'route="none"' in numbers


def test_wrong_requests_are_told_in_the_words_of_specs_with_the_field(
    service: Service, client: TestClient, tmp_path: Path
) -> None:
    me = token(service, "me")
    spec = spec_of("sae", tmp_path / "lab")
    for body, field, words in (
        ({}, "spec", "spec: required"),
        ({"spec": None}, "spec", "spec: "),
        ({"spec": spec, "atempt": 0}, "atempt", "atempt: unknown field; did you mean 'attempt'?"),
        ({"spec": spec, "attempt": "x"}, "attempt", "attempt: should be a valid integer"),
        ({"spec": {**spec, "stor": "/s"}}, "stor", "stor: unknown field; did you mean 'store'?"),
        ([], "body", "should be a valid dictionary"),
    ):
        found = error_of(client.post("/api/v1/jobs", json=body, headers=me), 422)
        assert found["field"] == field, found
        assert words in found["message"], found
    both = {**spec, "store": "/elsewhere", "output": "/etc/x"}
    found = error_of(client.post("/api/v1/jobs", json={"spec": both}, headers=me), 403)
    assert (found["field"], found["message"].splitlines()[0]) == ("store", "2 things in this job are not allowed:")
    found = error_of(client.get("/api/v1/jobs", params={"status": "DONE"}, headers=me), 422)
    assert found["message"].startswith("status: should be 'ACCEPTED', ")
    assert found["message"].endswith("got 'DONE'")
    assert error_of(client.get("/api/v1/job", headers=me), 404)["message"].startswith("nothing is at /api/v1/job;")


def test_every_route_is_described(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    for path, methods in schema["paths"].items():
        for method, facts in methods.items():
            assert facts["description"], (method, path)
            success = next(answer for status, answer in facts["responses"].items() if status.startswith("2"))
            assert success.get("content"), (method, path)
            if path.startswith("/api/"):
                for status in ("401", "403", "422"):
                    reference = facts["responses"][status]["content"]["application/json"]["schema"]["$ref"]
                    assert reference.endswith("/ErrorAnswer"), (method, path)


def test_the_page_of_the_api_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert re.findall(r"""(?:src|href)=['"]?([^'" >]+)""", page.text) == ["openapi.json"]
    for path in client.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in page.text


def test_nobody_comes_in_without_tokens_but_from_this_machine(tmp_path: Path) -> None:
    settings = Settings.model_validate(
        {"database": f"sqlite:///{tmp_path}/s.db", "clusters": {"a": {"address": NOBODY}}}
    )
    service = build_service(settings)
    require_guarded(service, "127.0.0.1")
    require_guarded(service, "::1")
    for host in ("0.0.0.0", "192.168.1.2", "somewhere.org", "::"):
        with pytest.raises(UserError, match="anybody could run jobs"):
            require_guarded(service, host)
    with TestClient(create_app(service), base_url="http://127.0.0.1:1") as client:
        assert client.get("/api/v1/jobs").status_code == 200
        body = {"spec": spec_of("sae", tmp_path)}
        assert client.post("/api/v1/jobs", json=body).json()["owner"] == "local"
        for headers in ({"Host": "rebound.example"}, {"Origin": "https://evil.example"}, {"Authorization": "Bearer x"}):
            assert client.get("/api/v1/jobs", headers=headers).status_code == 401
        service.tokens.create("me", Role.ADMIN, "lab")
        assert client.get("/api/v1/jobs").status_code == 401
    anew = build_service(settings)
    with pytest.raises(UserError, match="its settings name no policy"):
        require_guarded(anew, "127.0.0.1")
    anew.engine.dispose()


def test_settings_are_read_strictly(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    with pytest.raises(MissingError):
        read_settings(file)
    file.write_text("clusters: {a: {address: 127.0.0.1:6379}}\npol_s: 5\n")
    with pytest.raises(SpecError, match="as http://HOST:8265") as told:
        read_settings(file)
    assert "did you mean 'poll_s'" in str(told.value)
    file.write_text("")
    assert read_settings(file).default_cluster == "local"
