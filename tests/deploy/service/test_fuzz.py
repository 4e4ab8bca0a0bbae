"""Whatever comes over HTTP, made from the service's own description: never a 500, and every answer as described."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, seed, settings

from deploy.service.access import Role
from deploy.service.app import build_service, create_app
from deploy.service.settings import read_settings

NOBODY = "http://127.0.0.1:9"
EXAMPLES = 12
"""For each route."""


@pytest.fixture
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    """The app, its one cluster out of reach, and an admin's token."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "lab").mkdir()
    policy = {"teams": {"lab": {"write": [str(folder / "lab")], "models": ["hub:*/*"], "read": ["{stdlib}"]}}}
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    facts = {
        "clusters": {"a": {"address": NOBODY}}, "database": f"sqlite:///{folder}/db", "policy": f"{folder}/policy.yaml",
        "limits": {"per_minute": 10**6, "address_per_minute": 10**6},
    }  # fmt: skip
    (folder / "serve.yaml").write_text(yaml.safe_dump(facts))
    service = build_service(read_settings(folder / "serve.yaml"))
    yield create_app(service), service.tokens.create("root", Role.ADMIN, "lab")
    service.engine.dispose()


@pytest.mark.slow
def test_no_request_made_from_the_description_breaks_the_service(
    app: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import schemathesis  # a second, which the fast tests need not wait for

    application, secret = app
    schema = schemathesis.openapi.from_asgi("/openapi.json", application)
    tried: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        _try(operation, secret, tried.setdefault(operation.label, set()))
    assert len(tried) >= 10, "the description lacks routes"
    accepted = {label for label, statuses in tried.items() if any(status < 300 for status in statuses)}
    assert len(accepted) >= 5, tried
    assert 422 in tried["POST /api/v1/jobs"]


def _try(operation: Any, secret: str, statuses: set[int]) -> None:
    @seed(0)
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=False, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {secret}"}
        answer = case.call()
        statuses.add(answer.status_code)
        assert answer.status_code != 500, (operation.label, case.body, answer.text)
        operation.validate_response(answer)

    check()


@pytest.mark.parametrize("mode", ["none", "unknown", "viewer"])
def test_without_the_right_token_no_route_of_the_api_does_anything(app: tuple[Any, str], mode: str) -> None:
    application, _ = app
    tokens = application.state.service.tokens
    secret = {"none": "", "unknown": f"hw_{'0' * 12}_{'0' * 43}", "viewer": tokens.create("v", Role.VIEWER, "lab")}[
        mode
    ]
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    tried = 0
    with TestClient(application) as client:
        for path, methods in application.openapi()["paths"].items():
            for method in methods if path.startswith("/api/") else ():
                if mode == "viewer" and method == "get" and not path.endswith("/audit"):
                    continue
                answer = client.request(method, path.replace("{job_id}", "x-0"), headers=headers, json={})
                assert answer.status_code == (403 if mode == "viewer" else 401), (method, path)
                assert set(answer.json()) == {"error"}
                tried += 1
    assert tried >= (3 if mode == "viewer" else 9)


def _hostile(folder: str) -> Iterator[str | bytes]:
    """Bodies that no description yields."""
    train = f'"kind":"train","store":"{folder}/a","output":"{folder}/b"'
    one = '"name":"d","sources":["h"],"num_latents":64'
    collect = (
        '"kind":"collect","hook_points":["module:x:out"],"tokens":{"corpus":{"format":"text","urls":["{stdlib}/this.py"]}},'
        f'"output":"{folder}/store"'
    )
    for depth in (30, 300, 500, 900, 100_000):
        for opened, closed in (("[", "]"), ('{"a":', "}")):
            deep = f"{opened * depth}1{closed * depth}"
            yield f'{{"spec":{deep}}}'
            yield f'{{"spec":{{{collect},"model":{{"path":"x","arguments":{{"x":{deep}}}}}}}}}'
            yield f'{{"spec":{{{collect},"model":{deep}}}}}'
            yield f'{{"spec":{{{train},"sweep":{{"base":{{{one[11:]},"activation":{deep}}},"over":{{"seed":[1]}}}}}}}}'
            yield f'{{"spec":{{{train},"dictionaries":[{{{one},"groups":{deep}}}]}}}}'
            yield f'{{"spec":{{{train},"{deep[:1]}":{deep}}}}}'
    for number in ("NaN", "Infinity", "1e400", "9" * 4000, "9" * 5000, "-1", "1.5", "true", '"\\ud800"', '"\\u0000"'):
        yield f'{{"spec":{{{train},"dictionaries":[{{{one},"seed":{number}}}]}}}}'
        yield f'{{"spec":{{{collect},"model":{{"path":"x","arguments":{{"x":{number}}}}}}}}}'
        yield f'{{"spec":{{{train},"name":{number},"dictionaries":[{{{one}}}]}}}}'
        yield f'{{"spec":{{{train[:-3]}{number.strip(chr(34))}","dictionaries":[{{{one}}}]}},"cluster":{number}}}'
    yield from (
        b"\xff\xfe",
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b'{"spec":null}',
        b'{"spec":{"kind":[]}}',
        b"\x00" * 100,
    )


def test_hostile_bodies_are_the_senders_mistake(app: tuple[Any, str]) -> None:
    application, secret = app
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    folder = application.state.service.policy.teams["lab"].write[0]
    found = set()
    with TestClient(application, raise_server_exceptions=False) as client:
        for body in _hostile(folder):
            answer = client.post("/api/v1/jobs", content=body, headers=headers)
            assert answer.status_code < 500, (body[:200], answer.text)
            found.add(answer.status_code)
        for name in ("\xe9", "x" * 20_000, ""):
            answer = client.get("/api/v1/jobs", headers={"Authorization": f"Bearer {name}".encode("latin-1")})
            assert answer.status_code == 401
    assert {400, 403, 422} <= found


def test_the_service_runs_no_code_to_plan_a_job(
    app: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where policy and environment allow the import."""
    (tmp_path / "bait.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef model(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HEADWORKS_ALLOWED_IMPORTS", "bait.model")
    application, secret = app
    service = application.state.service
    lab = service.policy.teams["lab"]
    service.policy = service.policy.model_copy(
        update={"teams": {"lab": lab.model_copy(update={"imports": ("bait.model",)})}}
    )
    corpus = {"format": "text", "urls": ["{stdlib}/this.py"]}
    spec = {
        "kind": "collect", "model": {"path": "python:bait.model", "kind": "module"}, "hook_points": ["module:x:out"],
        "tokens": {"corpus": corpus, "tokenizer": "lab/x"}, "output": f"{lab.write[0]}/store",
    }  # fmt: skip
    with TestClient(application) as client:
        answer = client.post("/api/v1/plan", json={"spec": spec}, headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == 403, answer.text
    assert answer.json()["error"]["field"] == "model.path"
    assert not (tmp_path / "ran").exists()
