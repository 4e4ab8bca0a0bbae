"""Who did what, from where, and how it ended: records that are only ever added, each chained to the one before it.

The hash of a record covers its content and the hash before it, so a record that was changed or taken out breaks the
chain at that place. Records cut off at the end leave a chain that is whole but shorter: compare its head, which
``headworks audit verify`` prints, with one that was noted elsewhere (every head is in the service's log).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import DDL, Column, Connection, Engine, Float, Integer, String, Table, Text, event, insert, select
from sqlalchemy.exc import IntegrityError

from deploy.service.access import Principal
from deploy.service.database import metadata, reading, writing
from pipeline.logs import redacted, redacted_facts
from schemas.errors import BusyError, CorruptionError
from schemas.fingerprint import canonical_json

_log = logging.getLogger(__name__)

NOBODY = "-"
"""Principal and team of a request without a valid token."""

client_address: ContextVar[str] = ContextVar("client_address", default="")
"""Of the client whose request this is; set by ``deploy.service.limits``."""

_BEGINNING = "0" * 64
_PAGE = 1000
_TRIES = 20
_LONGEST = 1000

audit = Table(
    "audit",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("time", Float, nullable=False),
    Column("principal", String(64), nullable=False),
    Column("team", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", Text, nullable=False),
    Column("outcome", String(64), nullable=False),
    Column("address", String(64), nullable=False),
    Column("facts", Text, nullable=False),
    Column("digest", String(64), nullable=False),
)

for _verb in ("UPDATE", "DELETE"):
    event.listen(
        audit,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER audit_no_{_verb.lower()} BEFORE {_verb} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is only ever added to'); END"
        ).execute_if(dialect="sqlite"),
    )


class AuditFacts(BaseModel):
    """A record of what somebody did."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    sequence: int
    """1, 2, 3, ... without a gap."""
    principal: str
    """Name of the token; ``-`` for the command line."""
    team: str
    """Of the token."""
    action: str
    """``job.submit``, ``token.create``, ..."""
    subject: str
    """What it was done to."""
    outcome: str
    """``ok``, ``denied`` or the name of the error."""
    address: str
    """Of the client."""
    facts: dict[str, Any]
    """Anything else, without secrets."""
    digest: str
    """SHA-256 over this record and the digest of the one before it."""


class AuditRecord(AuditFacts):
    """One line of the log."""

    time: float
    """Unix seconds."""


@dataclass(frozen=True)
class Head:
    """The end of the chain: how many records there are, and the digest of the last."""

    sequence: int
    digest: str

    def __str__(self) -> str:
        return f"{self.sequence}:{self.digest}"


class Audit:
    """The audit log of a database."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock

    def record(
        self,
        principal: Principal | None,
        action: str,
        subject: str,
        outcome: str,
        facts: Mapping[str, Any] | None = None,
        *,
        address: str = "",
    ) -> AuditRecord:
        """Add a record; ``principal`` None: nobody who was recognised; ``address``: empty: that of the request under
        way. Secrets in the texts are taken out.

        Raises:
            BusyError: other writers were faster each time.
        """
        for _ in range(_TRIES):
            try:
                with writing(self._engine) as connection:
                    found = self.record_in(connection, principal, action, subject, outcome, facts, address=address)
            except IntegrityError:
                continue  # Another process added a record between our look at the last one and our insert.
            log_record(found)
            return found
        raise BusyError(f"the audit log did not take a record in {_TRIES} tries: too many write to it at once")

    def record_in(
        self,
        connection: Connection,
        principal: Principal | None,
        action: str,
        subject: str,
        outcome: str,
        facts: Mapping[str, Any] | None = None,
        *,
        address: str = "",
    ) -> AuditRecord:
        """The same as part of a transaction that writes, for ``log_record`` once that is committed.

        Raises:
            IntegrityError: another process added a record in between; the transaction is to be begun anew.
        """
        newest = select(audit.c.sequence, audit.c.digest).order_by(audit.c.sequence.desc()).limit(1)
        last = connection.execute(newest).first()
        row = {
            "sequence": last.sequence + 1 if last else 1,
            "time": self._clock(),
            "principal": principal.name if principal else NOBODY,
            "team": principal.team if principal else NOBODY,
            "action": action,
            "subject": _plain(subject),
            "outcome": outcome[:64],
            "address": (address or client_address.get())[:64],
            "facts": _facts(facts or {}),
        }
        row["digest"] = _digest(row, last.digest if last else _BEGINNING)
        connection.execute(insert(audit).values(row))
        return _record(row)

    def read(
        self, equal: Mapping[str, str] | None = None, *, before: int | None = None, limit: int = 100
    ) -> list[AuditRecord]:
        """The newest records first, of sequence below ``before``; ``equal``: columns (principal, team, action, subject,
        outcome) that must have these values."""
        wanted = select(audit).order_by(audit.c.sequence.desc()).limit(limit)
        if before is not None:
            wanted = wanted.where(audit.c.sequence < before)
        for name, value in (equal or {}).items():
            wanted = wanted.where(audit.c[name] == value)
        with reading(self._engine) as connection:
            return [_record(dict(row)) for row in connection.execute(wanted).mappings()]

    def verify(self, noted: Head | None = None) -> Head:
        """Walk over the whole chain and return its head; ``noted``: a head of an earlier time, which must be in it.

        Raises:
            CorruptionError: a record was changed, taken out or put in; the message says where.
        """
        head = Head(0, _BEGINNING)
        seen_noted = noted is None or noted == head
        while rows := self._page(head.sequence):
            for row in rows:
                head = _next(head, row)
                seen_noted = seen_noted or head == noted
        if not seen_noted:
            raise CorruptionError(
                f"the audit log: expected to find the head {noted}, which was noted earlier, got {head.sequence} "
                "records without it; records were taken off the end, or the log was written anew. Compare with a backup"
            )
        return head

    def _page(self, after: int) -> list[Any]:
        wanted = select(audit).where(audit.c.sequence > after).order_by(audit.c.sequence).limit(_PAGE)
        with reading(self._engine) as connection:
            return list(connection.execute(wanted).mappings())


def _next(head: Head, row: Any) -> Head:
    if row["sequence"] != head.sequence + 1:
        raise CorruptionError(
            f"the audit log: expected record {head.sequence + 1}, got {row['sequence']}; what lies between was taken "
            "out. Compare with a backup"
        )
    if row["digest"] != _digest(row, head.digest):
        raise CorruptionError(
            f"the audit log: record {row['sequence']} does not have the digest of its content and of the record before "
            "it; one of the two was changed. Compare with a backup"
        )
    return Head(row["sequence"], row["digest"])


def _digest(row: Mapping[str, Any], before: str) -> str:
    content = {name: row[name] for name in audit.c.keys() if name != "digest"}  # noqa: SIM118 - a collection of columns
    # Databases keep the bits of a double, but not always the text that it prints as.
    content["time"] = float(row["time"]).hex()
    return sha256(canonical_json({**content, "before": before})).hexdigest()


def _record(row: Mapping[str, Any]) -> AuditRecord:
    return AuditRecord(**{**row, "facts": json.loads(row["facts"])})


def log_record(found: AuditRecord) -> None:
    """Say what was recorded in the service's log, and with it the head of the chain."""
    facts = {f"audit_{name}": value for name, value in found.model_dump().items() if name != "facts"}
    _log.info("audit %s %s %s", found.action, found.subject, found.outcome, extra={"facts": facts})


def _facts(facts: Mapping[str, Any]) -> str:
    hidden = {name: _cut(value) if isinstance(value, str) else value for name, value in redacted_facts(facts).items()}
    return json.dumps(hidden, default=str, sort_keys=True)


def _plain(text: str) -> str:
    """One line without secrets; a null byte is nothing that PostgreSQL keeps."""
    line = "".join(letter if letter.isprintable() else " " for letter in redacted(text))
    return _cut(line)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
