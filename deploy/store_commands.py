"""``headworks store``: what can be asked of a store, and done to it, without a job spec."""

from __future__ import annotations

import click

from deploy import show
from deploy.options import json_option


@click.group()
def store() -> None:
    """Activation stores."""


@store.command("info")
@click.argument("url")
@json_option
def store_info(url: str, as_json: bool) -> None:
    """What a store holds and what it was made from."""
    from deploy import inspection

    facts = inspection.store_facts(url)
    show.emit(facts, inspection.store_lines(facts), as_json=as_json)


@store.command()
@click.argument("url")
@click.option("--quick", is_flag=True, help="Compare lengths only; do not read the data.")
@json_option
def verify(url: str, quick: bool, as_json: bool) -> None:
    """Read a store and compare it with its ledger; exit code 1 if anything differs."""
    from deploy import inspection

    problems = inspection.store_problems(url, is_deep=not quick)
    show.emit({"url": url, "problems": problems}, problems or [f"{url}: no problems"], as_json=as_json)
    if problems:
        raise click.exceptions.Exit(1)
