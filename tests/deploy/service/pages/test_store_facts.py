"""What the service adds to stores: how many jobs read them, and checks that are remembered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from things import HOOK, write_store

from deploy.service.access import Role
from deploy.service.app import build_service, create_app
from deploy.service.context import Service
from deploy.service.settings import Settings
from deploy.service.store_facts import read_urls
from pipeline.spec_file import validated


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump({"teams": {"lab": {"write": [str(tmp_path / "lab")]}}}))
    facts = {"database": f"sqlite:///{tmp_path}/db", "policy": str(tmp_path / "policy.yaml")}
    service = build_service(Settings.model_validate(facts))
    yield service
    service.engine.dispose()


def client_of(service: Service, name: str, role: Role) -> TestClient:
    secret = service.tokens.create(name, role, "lab")
    return TestClient(create_app(service), headers={"Authorization": f"Bearer {secret}"})


def train_of(store: str, name: str) -> Any:
    dictionary = {"name": "d", "sources": [HOOK], "num_latents": 64}
    facts = {"kind": "train", "name": name, "store": store, "output": f"/o/{name}", "dictionaries": [dictionary]}
    return validated(facts, where="test")


def test_a_store_is_counted_once_for_each_job_that_reads_it(service: Service, tmp_path: Path) -> None:
    store = f"{tmp_path}/lab/store"
    write_store(store, "text")
    for name, place in (("one", store), ("two", f"{store}/"), ("other", "/elsewhere")):
        job, _ = service.jobs.accept(train_of(place, name), cluster="local", owner="me", team="lab")
        service.jobs.stop(job.id)
        again, is_new = service.jobs.accept(train_of(place, name), cluster="local", owner="me", team="lab")
        assert (again.attempt, is_new) == (1, True)
    found = client_of(service, "eve", Role.VIEWER).get("/api/v1/stores").json()
    assert (found["total"], found["readers"], found["checks"]) == (1, {store: 2}, {})


def test_what_a_pipeline_reads_has_its_references_resolved() -> None:
    pipeline = validated(
        {
            "kind": "pipeline", "name": "p", "output": "/p",
            "jobs": [
                {"kind": "collect", "name": "c", "model": {"path": "gpt2"}, "output": "/s", "hook_points": [HOOK],
                 "tokens": {"corpus": {"format": "text", "urls": ["/t/*.txt"]}}},
                train_of("${c}", "t").model_dump(mode="json"),
                {"kind": "evaluate", "name": "e", "store": "/s/", "dictionaries": "${t}", "output": "/e"},
            ],
        },
        where="test",
    )  # fmt: skip
    assert read_urls(pipeline) == {"/s", "/o/t"}
    assert read_urls(train_of("/" + "x" * 2000, "long")) == set()


def test_a_check_finds_what_was_cut_off_and_is_remembered(service: Service, tmp_path: Path) -> None:
    store = f"{tmp_path}/lab/store"
    write_store(store, "text")
    viewer, submitter = client_of(service, "eve", Role.VIEWER), client_of(service, "sam", Role.SUBMITTER)
    assert viewer.post("/api/v1/store/check", params={"url": store}).status_code == 403
    assert submitter.post("/api/v1/store/check", params={"url": f"{tmp_path}/other"}).status_code == 403
    assert submitter.post("/api/v1/store/check", params={"url": f"{tmp_path}/lab/none"}).status_code == 404
    sound = submitter.post("/api/v1/store/check", params={"url": f"{store}/"}).json()
    assert (sound["num_problems"], sound["problems"], sound["checked_by"]) == (0, [], "sam")
    assert sound["objects"] > 0
    objects = [path for path in Path(store).rglob("*") if path.is_file() and "c" in path.relative_to(store).parts]
    largest = max(objects, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    cut = submitter.post("/api/v1/store/check", params={"url": store}).json()
    assert cut["num_problems"] == len(cut["problems"]) == 1
    assert str(largest.relative_to(store)) in cut["problems"][0]
    assert viewer.get("/api/v1/stores", params={"url": store}).json()["checks"] == {store: cut}
