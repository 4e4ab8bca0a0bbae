"""Dictionaries beside their evaluations, and reports, as the API gives them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from things import HOOK, write_dictionary, write_evaluation

from deploy.service.access import Role
from deploy.service.app import build_service, create_app
from deploy.service.settings import Settings


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """As a viewer of a team that may read the folder ``lab``."""
    for folder in ("lab", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump({"teams": {"lab": {"write": [str(tmp_path / "lab")]}}}))
    facts = {"database": f"sqlite:///{tmp_path}/db", "policy": str(tmp_path / "policy.yaml")}
    service = build_service(Settings.model_validate(facts))
    secret = service.tokens.create("eve", Role.VIEWER, "lab")
    yield TestClient(create_app(service), headers={"Authorization": f"Bearer {secret}"})
    service.engine.dispose()


def compared(client: TestClient, **query: Any) -> dict[str, Any]:
    answer = client.get("/api/v1/comparison", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_dictionary_comes_with_the_evaluations_of_its_weights_only(client: TestClient, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    assert compared(client) == {"dictionaries": [], "total": 0}
    write_dictionary(lab / "run" / "dictionaries", "one", l0=16, fvu=0.2)
    write_dictionary(lab / "run" / "dictionaries", "two", l0=32, fvu=0.1)
    write_evaluation(lab / "run", "one", l0=15.5, fvu=0.25, report="<p>one</p>")
    write_evaluation(lab / "again", "one", l0=15, fvu=0.26)
    write_evaluation(lab / "stale", "two", l0=1, fvu=0.9, weights="others")
    found = compared(client)
    assert found["total"] == 2
    one, two = found["dictionaries"]
    assert (one["name"], one["sources"], one["metrics"]["fvu"]) == ("one", {HOOK: 8}, 0.2)
    assert [(each["url"], each["has_report"], each["fvu"], each["l0"]) for each in one["evaluations"]] == [
        (f"{lab}/again", False, 0.26, 15.0), (f"{lab}/run", True, 0.25, 15.5),
    ]  # fmt: skip
    assert one["evaluations"][0]["split"] == "held_out"
    assert one["evaluations"][0]["ce_recovered"] is None
    assert (two["name"], two["evaluations"]) == ("two", [])
    page = compared(client, url=f"{lab}/run", limit=1, offset=1)
    assert ([each["name"] for each in page["dictionaries"]], page["total"]) == (["two"], 2)


def test_a_damaged_evaluation_is_named(client: TestClient, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "lab" / "run", "one", l0=1, fvu=1)
    for content in ("{", "[]", '{"identity": {}}', '{"identity": {"dictionaries": {"a": 5}}, "rows": {"split": "x"}}'):
        (tmp_path / "lab" / "run" / "evaluation.json").write_text(content)
        answer = client.get("/api/v1/comparison")
        assert answer.status_code == 409, content
        assert f"{tmp_path}/lab/run/evaluation.json is no evaluation" in answer.json()["error"]["message"]


def test_a_report_is_a_file_to_save_and_comes_from_allowed_places_only(client: TestClient, tmp_path: Path) -> None:
    for folder in ("lab", "other"):
        write_evaluation(tmp_path / folder / "run", "one", l0=1, fvu=1, report="<script>1</script>")
    answer = client.get("/api/v1/report", params={"url": f"{tmp_path}/lab/run"})
    assert (answer.status_code, answer.text) == (200, "<script>1</script>")
    assert answer.headers["Content-Security-Policy"].startswith("sandbox;")
    assert answer.headers["Content-Disposition"].startswith("attachment")
    missing = client.get("/api/v1/report", params={"url": f"{tmp_path}/lab"})
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "MissingError")
    for path in ("report", "comparison"):
        for url in (f"{tmp_path}/other/run", f"{tmp_path}/lab/../other/run"):
            assert client.get(f"/api/v1/{path}", params={"url": url}).status_code == 403, (path, url)
        without = client.get(f"/api/v1/{path}", params={"url": f"{tmp_path}/lab/run"}, headers={"Authorization": ""})
        assert without.status_code == 401
    policy = client.get("/report-frame").headers["Content-Security-Policy"]
    assert "sandbox allow-scripts;" in policy
    assert "allow-same-origin" not in policy
    assert "connect-src" not in policy
