"""The pages without a browser: what is served, under which policy, and that nothing comes from elsewhere."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from fastapi.testclient import TestClient

import deploy.service.pages
from deploy.service.access import Role
from deploy.service.app import build_service, create_app
from deploy.service.context import Service
from deploy.service.settings import Settings

FOLDER = Path(deploy.service.pages.__file__).parent
PAGES = ["", "job", "stores", "store", "dictionaries", "dictionary"]
MARKUP = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write\b|\beval\(|https?://(?!www\.w3\.org)")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump({"teams": {"lab": {"write": [str(tmp_path / "lab")]}}}))
    facts = {
        "clusters": {"a": {"address": "http://127.0.0.1:9"}}, "database": f"sqlite:///{tmp_path}/db",
        "policy": str(tmp_path / "policy.yaml"),
    }  # fmt: skip
    service = build_service(Settings.model_validate(facts))
    yield service
    service.engine.dispose()


@pytest.fixture
def client(service: Service) -> TestClient:
    return TestClient(create_app(service))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_its_own_files_only_and_runs_no_script_of_its_text(client: TestClient, page: str) -> None:
    answer = client.get(f"/{page}")
    assert answer.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["form-action"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|javascript:", answer.text)
    for address in re.findall(r"""(?:src|href|action)=["']?([^"' >]+)""", answer.text):
        assert address.startswith("#") or re.fullmatch(r"data:,|\./|[a-z]+|assets/[a-z]+\.(?:js|css)", address), address
        if address.startswith("assets/"):
            found = client.get(f"/{address}")
            assert found.status_code == 200, address
            assert found.headers["Content-Type"].startswith(
                "text/css" if address.endswith("css") else "text/javascript"
            )


def test_scripts_import_files_that_are_there_and_write_no_markup() -> None:
    scripts = {path.name: path.read_text("utf-8") for path in (FOLDER / "assets").glob("*.js")}
    for name, text in scripts.items():
        for imported in re.findall(r"""(?:from|import\()\s*["']([^"']+)["']""", text):
            assert imported.removeprefix("./") in scripts, (name, imported)
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write\b|\beval\(|https?://(?!www\.w3\.org)", text
        ), name
        assert "localStorage" not in text, name
    assert [name for name, text in scripts.items() if "Authorization" in text] == ["api.js"]


def test_elements_that_scripts_ask_for_are_on_their_page(client: TestClient) -> None:
    for page in PAGES:
        name = page or "jobs"
        there = set(re.findall(r'\sid="([^"]+)"', client.get(f"/{page}").text))
        script = (FOLDER / "assets" / f"{name}.js").read_text("utf-8")
        asked = set(re.findall(r'byId\("([^"]+)"\)', script))
        assert asked
        assert asked <= there, (name, asked - there)


def test_what_the_pages_need_is_packaged() -> None:
    patterns = tomllib.loads((FOLDER.parents[2] / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    for path in FOLDER.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert any(fnmatch(path.name, pattern) for pattern in patterns["package-data"]["*"]), path


def test_assets_are_kept_by_browsers_until_they_change(client: TestClient) -> None:
    first = client.get("/assets/page.css")
    assert first.headers["Cache-Control"] == "no-cache"
    again = client.get("/assets/page.css", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/assets/page.css", headers={"If-None-Match": '"old"'}).status_code == 200
    for name in ("nothing.js", "..%2F__init__.py", "__init__.py", "%2e%2e%2fpage_routes.py"):
        assert client.get(f"/assets/{name}").status_code == 404, name


def test_whoami_says_what_a_token_may_do_and_pages_hold_nothing_of_it(service: Service, client: TestClient) -> None:
    secret = service.tokens.create("eve", Role.VIEWER, "lab")
    assert client.get("/api/v1/whoami").status_code == 401
    found = client.get("/api/v1/whoami", headers={"Authorization": f"Bearer {secret}"}).json()
    assert service.policy is not None
    assert found == {"name": "eve", "role": "viewer", "team": "lab", "places": [service.policy.teams["lab"].write[0]]}
    # A token in an address is nobody's, and no page says it back.
    assert client.get("/api/v1/whoami", params={"token": secret}).status_code == 401
    assert secret not in client.get("/job", params={"id": secret}).text
