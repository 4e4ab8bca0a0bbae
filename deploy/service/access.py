"""Who is there: bearer tokens with a role and a team, their secrets shown once and kept as hashes.

A token is ``hw_ID_SECRET``. The id finds its row; the secret is 256 random bits, compared as its SHA-256 in a time that
does not depend on where they differ. A plain hash is right here: nobody can guess 256 random bits, so a slow password
hash would protect nothing and make every request slow.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Column, Engine, Float, String, Table, insert, select, update
from sqlalchemy.exc import IntegrityError

from deploy.service.database import metadata, reading, writing
from schemas.errors import MismatchError, MissingError, SpecError, nearest
from schemas.fields import is_name

LAST_USED_STEP_S = 600.0
"""``last_used`` is this coarse, so that requests do not all write."""

_LETTERS = string.digits + string.ascii_letters
_ID_LENGTH = 12
_SECRET_LENGTH = 43
"""Digits of 256 bits to the base 62."""
_TOKEN = re.compile(rf"hw_([0-9A-Za-z]{{{_ID_LENGTH}}})_([0-9A-Za-z]{{{_SECRET_LENGTH}}})", re.ASCII)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(_ID_LENGTH), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("digest", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("team", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
    Column("last_used", Float),
)


class Role(StrEnum):
    """What somebody may do; each may do what those before it may."""

    VIEWER = "viewer"
    """Look at jobs, stores and dictionaries of the team."""
    SUBMITTER = "submitter"
    """Also submit, stop and retry jobs."""
    ADMIN = "admin"
    """Also see and stop those of all teams, and read the audit log."""

    def may_act_as(self, role: Role) -> bool:
        """Whether this role may do what that one may."""
        order = list(Role)
        return order.index(self) >= order.index(role)


@dataclass(frozen=True)
class Principal:
    """Somebody whose token was recognised."""

    name: str
    role: Role
    team: str


@dataclass(frozen=True)
class TokenFacts:
    """A token without its secret. Times are Unix seconds, None: never."""

    name: str
    role: Role
    team: str
    created: float
    expires: float | None
    revoked: float | None
    last_used: float | None

    def state(self, now: float) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


class Tokens:
    """The tokens of a database."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock

    def create(self, name: str, role: Role, team: str, expires: float | None = None) -> str:
        """A new token, which is returned here and never again; ``expires`` in Unix seconds, None: never.

        Raises:
            SpecError: a name or a team that is none, or an end that lies in the past.
            MismatchError: the name is taken. Those of revoked tokens stay taken, since the audit log names them.
        """
        now = self._clock()
        for what, text in (("name", name), ("team", team)):
            if not is_name(text):
                raise SpecError(f"{what} {text!r}: expected letters, digits, '_', '.', '-', 64 at most")
        if expires is not None and expires <= now:
            raise SpecError("the token would have expired already; give a time to come")
        identifier, secret = _random(_ID_LENGTH), _digits(secrets.token_bytes(32))
        row = {
            "id": identifier, "name": name, "digest": _digest(secret), "role": role.value, "team": team,
            "created": now, "expires": expires,
        }  # fmt: skip
        try:
            with writing(self._engine) as connection:
                connection.execute(insert(tokens).values(row))
        except IntegrityError as error:
            raise MismatchError(f"there is, or was, a token named {name!r} already; give another name") from error
        return f"hw_{identifier}_{secret}"

    def find(self, secret: str) -> Principal | None:
        """Whose token it is; None of an unknown, a revoked or an expired one."""
        match = _TOKEN.fullmatch(secret)
        if match is None:
            return None
        with reading(self._engine) as connection:
            row = connection.execute(select(tokens).where(tokens.c.id == match[1])).mappings().first()
        # Compared with something in any case, so that the time does not tell whether there is such an id.
        is_right = hmac.compare_digest(_digest(match[2]), row["digest"] if row else "0" * 64)
        now = self._clock()
        if row is None or not is_right or _facts(row).state(now) != "active":
            return None
        self._note_use(match[1], row["last_used"], now)
        return Principal(row["name"], Role(row["role"]), row["team"])

    def revoke(self, name: str) -> None:
        """End a token at once; revoking it again changes nothing.

        Raises:
            MissingError: there is none of that name.
        """
        with writing(self._engine) as connection:
            found = connection.execute(select(tokens.c.revoked).where(tokens.c.name == name)).first()
            if found is not None and found.revoked is None:
                connection.execute(update(tokens).where(tokens.c.name == name).values(revoked=self._clock()))
        if found is None:
            known = [token.name for token in self.all()]
            raise MissingError(f"no token named {name!r}{nearest(name, known)}; `headworks tokens list` names them")

    def all(self) -> list[TokenFacts]:
        """Every token that there ever was, the oldest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(tokens).order_by(tokens.c.created, tokens.c.name)).mappings().all()
        return [_facts(row) for row in rows]

    def _note_use(self, identifier: str, last_used: float | None, now: float) -> None:
        step = now - now % LAST_USED_STEP_S
        if last_used is not None and last_used >= step:
            return
        with writing(self._engine) as connection:
            connection.execute(update(tokens).where(tokens.c.id == identifier).values(last_used=step))


def token_id(secret: str) -> str | None:
    """The public part of what has the form of a token, whether or not it is one."""
    match = _TOKEN.fullmatch(secret)
    return match[1] if match else None


def _facts(row: Any) -> TokenFacts:
    names = ("name", "team", "created", "expires", "revoked", "last_used")
    return TokenFacts(role=Role(row["role"]), **{name: row[name] for name in names})


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("ascii")).hexdigest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def _digits(data: bytes) -> str:
    """Letters and digits only: a double click selects all of it, and no shell or URL changes it."""
    number, found = int.from_bytes(data, "big"), ""
    for _ in range(_SECRET_LENGTH):
        number, digit = divmod(number, len(_LETTERS))
        found += _LETTERS[digit]
    return found
