"""Templates whose values are quoted for the shell."""

from __future__ import annotations

import shlex
from functools import cache
from typing import Any

import jinja2


def filled(template: str, **values: Any) -> str:
    """The text of a file of ``deploy/rendering/templates``; a value that it needs and does not get is an error."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deploy.rendering"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - shell, not HTML: every value goes through `quote`
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    environment.filters["docker"] = _docker_quoted
    return environment


def _docker_quoted(value: str) -> str:
    """One word of a Dockerfile, whose double quotes let ``$`` and backslashes act."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'
