"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def set_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="PATH=VALUE",
        help="Override a field, for example jobs[0].tokens.max_tokens=100000. May be given again.",
    )(command)


def places_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where a store's model and token table are now; it remembers where they were."""
    options = (
        click.option("--model", default="", help="Path of the model, if it is not where it was."),
        click.option("--tokens", default="", help="URL of the token table, if it is not where it was."),
        click.option("--device", default="", help="cpu or cuda, if not as in the store's spec."),
    )
    for option in reversed(options):
        command = option(command)
    return command
