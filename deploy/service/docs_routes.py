"""The API for people at ``/docs``: the OpenAPI description as one page that loads nothing from elsewhere."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, select_autoescape

router = APIRouter()

_CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@router.get("/docs", include_in_schema=False)
def docs(request: Request) -> HTMLResponse:
    """The page."""
    templates = Environment(
        loader=PackageLoader("deploy.service"), autoescape=select_autoescape(default=True), trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = templates.get_template("docs.html.j2").render(api=request.app.openapi(), form=_form)
    return HTMLResponse(page, headers={"Content-Security-Policy": _CONTENT_POLICY})


def _form(schema: Any) -> str:
    """A JSON schema in a few words."""
    if not isinstance(schema, dict):
        return ""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_form(each) for each in schema[key])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_form(schema.get('items'))}"
    return str(schema.get("const", schema.get("type", "")))
