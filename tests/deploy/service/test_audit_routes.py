"""The audit log over HTTP: for admins, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from deploy.service.access import Principal, Role
from deploy.service.app import build_service, create_app
from deploy.service.settings import Settings


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    (tmp_path / "policy.yaml").write_text("teams: {lab: {}}")
    facts = {"database": f"sqlite:///{tmp_path}/db", "policy": f"{tmp_path}/policy.yaml"}
    service = build_service(Settings.model_validate(facts))
    for index in range(5):
        service.audit.record(Principal("ann", Role.SUBMITTER, "lab"), "job.submit", f"job-{index}", "ok", {"n": index})
    service.audit.record(Principal("ben", Role.SUBMITTER, "lab"), "job.stop", "job-1", "denied")
    with TestClient(create_app(service)) as client:
        for name, role in (("root", Role.ADMIN), ("sub", Role.SUBMITTER)):
            client.headers[f"x-{name}"] = service.tokens.create(name, role, "lab")
        yield client


def bearer(client: TestClient, name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {client.headers[f'x-{name}']}"}


def test_admins_read_it_page_by_page(client: TestClient) -> None:
    root = bearer(client, "root")
    first = client.get("/api/v1/audit", params={"limit": 4}, headers=root).json()
    assert [record["sequence"] for record in first["records"]] == [6, 5, 4, 3]
    assert first["records"][0]["principal"] == "ben"
    assert first["records"][1]["facts"] == {"n": 4}
    rest = client.get("/api/v1/audit", params={"limit": 4, "before": first["before"]}, headers=root).json()
    assert ([record["sequence"] for record in rest["records"]], rest["before"]) == ([2, 1], None)
    denied = client.get("/api/v1/audit", params={"outcome": "denied", "team": "lab"}, headers=root).json()
    assert [record["subject"] for record in denied["records"]] == ["job-1"]
    assert client.get("/api/v1/audit", params={"limit": 2, "before": 3}, headers=root).json()["before"] is None


def test_nobody_else_reads_it(client: TestClient) -> None:
    assert client.get("/api/v1/audit").status_code == 401
    assert client.get("/api/v1/audit", headers=bearer(client, "sub")).status_code == 403
