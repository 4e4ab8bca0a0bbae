"""``headworks tokens`` and ``headworks audit``: who may use the service, and what they did. For its operator."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from deploy import show
from deploy.options import json_option
from schemas.errors import MissingError, SpecError
from schemas.fields import parse_duration

if TYPE_CHECKING:
    from sqlalchemy import Engine

_HEAD = re.compile(r"(\d+):([0-9a-f]{64})")


def database_option(command: Any) -> Any:
    return click.option(
        "--database", envvar="HEADWORKS_DATABASE", default="sqlite:///headworks.db", show_default=True,
        help="The service's database.",
    )(command)  # fmt: skip


@click.group()
def tokens() -> None:
    """Tokens of the service."""


@tokens.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["viewer", "submitter", "admin"]), required=True, help="What they may do.")
@click.option("--team", required=True, help="Whose policy their jobs are held to.")
@click.option("--expires", default="90d", show_default=True, metavar="TIME", help="From now on: 30d, 12h; never.")
@database_option
@json_option
def create(name: str, role: str, team: str, expires: str, database: str, as_json: bool) -> None:
    """Make a token for a person or a program, and show its secret: this once."""
    engine = _open(database)
    from deploy.service.access import Role, Tokens

    end = None if expires == "never" else time.time() + _seconds(expires)
    secret = Tokens(engine).create(name, Role(role), team, end)
    _record(engine, "token.create", name, {"role": role, "team": team, "expires": _time(end)})
    click.echo("Shown this once; hand it over on a safe way. They put it into HEADWORKS_TOKEN.", err=True)
    show.emit({"name": name, "role": role, "team": team, "expires": end, "secret": secret}, [secret], as_json=as_json)


@tokens.command("list")
@database_option
@json_option
def list_tokens(database: str, as_json: bool) -> None:
    """Every token that there ever was, without its secret."""
    engine = _open(database)
    from deploy.service.access import Tokens

    now = time.time()
    found = [{**asdict(token), "role": token.role.value, "state": token.state(now)} for token in Tokens(engine).all()]
    rows = [{**row, **{field: _time(row[field]) for field in ("created", "expires", "last_used")}} for row in found]
    columns = ("name", "role", "team", "state", "created", "expires", "last_used")
    show.emit(found, show.table(rows, columns) if rows else ["no tokens"], as_json=as_json)


@tokens.command()
@click.argument("name")
@database_option
@json_option
def revoke(name: str, database: str, as_json: bool) -> None:
    """End a token; its next request is refused. Jobs that it submitted go on."""
    engine = _open(database)
    from deploy.service.access import Tokens

    Tokens(engine).revoke(name)
    _record(engine, "token.revoke", name, {})
    show.emit({"name": name, "state": "revoked"}, [f"{name} is revoked"], as_json=as_json)


@click.group()
def audit() -> None:
    """The service's audit log: who did what."""


@audit.command("list")
@click.option("--principal", default="", help="Of one name only.")
@click.option("--team", default="", help="Of one team only.")
@click.option("--action", default="", help="Of one action only, for example submit.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many of the newest.")
@database_option
@json_option
def list_audit(principal: str, team: str, action: str, limit: int, database: str, as_json: bool) -> None:
    """The newest records."""
    engine = _open(database)
    from deploy.service.audit import Audit

    wanted = {"principal": principal, "team": team, "action": action}
    found = Audit(engine).read({name: value for name, value in wanted.items() if value}, limit=limit)
    rows = [{**record.model_dump(), "time": _time(record.time)} for record in found]
    columns = ("sequence", "time", "principal", "team", "action", "subject", "outcome", "address")
    shown = [record.model_dump() for record in found]
    show.emit(shown, show.table(rows, columns) if rows else ["empty"], as_json=as_json)


@audit.command()
@click.option("--head", default="", metavar="N:DIGEST", help="A head that was noted earlier and must be in the log.")
@database_option
@json_option
def verify(head: str, database: str, as_json: bool) -> None:
    """Check that no record was changed or taken out, and print the head of the log; exit code 1 if one was."""
    engine = _open(database)
    from deploy.service.audit import Audit, Head

    match = _HEAD.fullmatch(head)
    if head and match is None:
        raise SpecError(f"--head {head}: expected NUMBER:DIGEST, as an earlier `headworks audit verify` printed it")
    found = Audit(engine).verify(Head(int(match[1]), match[2]) if match else None)
    lines = [f"{found.sequence:,} records, none changed or missing", f"head {found}"]
    show.emit({"records": found.sequence, "head": str(found)}, lines, as_json=as_json)


def _open(database: str) -> Engine:
    """The database with the tables of tokens and audit.

    Raises:
        MissingError: the service's packages are not installed.
    """
    try:
        from deploy.service import access, audit  # noqa: F401 - they register their tables
        from deploy.service.database import open_database
    except ModuleNotFoundError as error:
        raise MissingError(f"{error}; install the extra: pip install 'headworks[service]'") from error
    return open_database(database)


def _record(engine: Engine, action: str, name: str, facts: dict[str, Any]) -> None:
    from deploy.service.audit import Audit
    from pipeline.store.leases import this_process

    Audit(engine).record(None, action, name, "ok", {**facts, "by": this_process()}, address="command line")


def _seconds(text: str) -> int:
    try:
        return int(parse_duration(text))
    except ValueError as error:
        raise SpecError(f"--expires {text}: {error}") from None


def _time(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds is not None else "never"
