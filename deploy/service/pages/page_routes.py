"""The pages and what they load. They hold no data: their scripts ask ``/api/v1`` with the reader's token.

Every address on a page is relative and every page lies at the top, so a proxy may serve them below any prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import get_args

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from deploy.service.access import Role
from deploy.service.answers import described
from deploy.service.context import InService, Viewer
from deploy.service.pages import evaluation_routes
from deploy.service.views import Kind
from schemas.versions import versions

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""No script but the service's own files, and no text that becomes markup: a browser refuses ``innerHTML`` here."""

HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}

FRAME_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""Of the frame that a report is shown in: its scripts run, as those of a stranger that reaches nothing."""

router = APIRouter()
router.include_router(evaluation_routes.router)


class Whoami(BaseModel):
    """Who asks, and what a page may offer them."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    """Of the token; ``local`` on a service without tokens."""
    role: Role
    """What they may do."""
    team: str
    """Whose jobs they see; an admin sees those of all teams."""
    places: list[str] | None
    """What the team may read; null: the service has no policy, and any absolute path or URL can be named."""


@dataclass(frozen=True)
class _Asset:
    content: bytes
    kind: str
    tag: str


@router.get("/api/v1/whoami", tags=["service"], responses=described())
def whoami(service: InService, who: Viewer) -> Whoami:
    """Whose token this is and what it may do."""
    places = None if service.policy is None else [*service.policy.readable(who)]
    return Whoami(name=who.name, role=who.role, team=who.team, places=places)


@router.get("/", include_in_schema=False)
def jobs() -> HTMLResponse:
    """The list of jobs."""
    return _page("jobs")


@router.get("/job", include_in_schema=False)
def job() -> HTMLResponse:
    """One attempt of a job, named by ``id``."""
    return _page("job")


@router.get("/stores", include_in_schema=False)
def stores() -> HTMLResponse:
    """The stores at or below ``url``."""
    return _page("stores")


@router.get("/store", include_in_schema=False)
def store() -> HTMLResponse:
    """One store, named by ``url``."""
    return _page("store")


@router.get("/dictionaries", include_in_schema=False)
def dictionaries() -> HTMLResponse:
    """The dictionaries at or below ``url``, compared."""
    return _page("dictionaries")


@router.get("/dictionary", include_in_schema=False)
def dictionary() -> HTMLResponse:
    """One dictionary, named by ``url``."""
    return _page("dictionary")


@router.get("/report-frame", include_in_schema=False)
def report_frame() -> HTMLResponse:
    """An empty page that becomes the report which the page around it hands over."""
    return HTMLResponse(_rendered("report_frame"), headers={**HEADERS, "Content-Security-Policy": FRAME_POLICY})


@router.get("/assets/{name}", include_in_schema=False)
def asset(name: str, request: Request) -> Response:
    """A style sheet or script of the pages."""
    found = _assets().get(name)
    if found is None:
        raise HTTPException(404, f"no file {name!r} belongs to the pages")
    headers = {**HEADERS, "ETag": found.tag}
    if request.headers.get("if-none-match") == found.tag:
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.kind, headers=headers)


def _page(name: str) -> HTMLResponse:
    return HTMLResponse(_rendered(name), headers=HEADERS)


@cache
def _rendered(name: str) -> str:
    templates = Environment(
        loader=PackageLoader("deploy.service.pages"), autoescape=select_autoescape(default=True), trim_blocks=True,
        lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    facts = {"page": name, "version": versions()["headworks"], "kinds": get_args(Kind)}
    return templates.get_template(f"{name}.html.j2").render(facts)


@cache
def _assets() -> dict[str, _Asset]:
    """By name; read once, so no name from a request ever meets the file system."""
    found = {}
    for file in files("deploy.service.pages").joinpath("assets").iterdir():
        kind = _TYPES.get(file.name[file.name.rfind(".") :])
        if kind is not None:
            content = file.read_bytes()
            found[file.name] = _Asset(content, kind, f'"{sha256(content).hexdigest()[:32]}"')
    return found
