"""Tokens: shown once, kept as hashes, gone when revoked or expired."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.service.access import LAST_USED_STEP_S, Principal, Role, Tokens, _digits, token_id
from deploy.service.database import open_database
from schemas.errors import MismatchError, MissingError, SpecError


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> Tokens:
    return Tokens(open_database("sqlite://"), clock)


def test_a_token_says_who_comes(tokens: Tokens) -> None:
    secret = tokens.create("ann", Role.SUBMITTER, "interp")
    assert re.fullmatch(r"hw_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}", secret)
    assert tokens.find(secret) == Principal("ann", Role.SUBMITTER, "interp")
    assert token_id(secret) == secret.split("_")[1]


def test_only_the_whole_secret_is_taken(tokens: Tokens) -> None:
    secret = tokens.create("ann", Role.ADMIN, "interp")
    other = tokens.create("ben", Role.VIEWER, "interp")
    _, identifier, rest = secret.split("_")
    forged = [
        "", "hw_", identifier, rest, f"hw_{identifier}_", f"hw_{identifier}_{'0' * 43}", f"hw_{'0' * 12}_{rest}",
        f"hw_{other.split('_')[1]}_{rest}", secret + "0", secret[:-1], f" {secret}", secret + "\n", secret.upper(),
        f"hw_%_{rest}", f"hw_{identifier}_" + "\u0660" * 43, "x" * 10_000,
    ]  # fmt: skip
    assert [text for text in forged if tokens.find(text)] == []
    flipped = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    assert tokens.find(flipped) is None


def test_the_database_has_no_secret(tmp_path: Path) -> None:
    secret = Tokens(open_database(f"sqlite:///{tmp_path}/db")).create("ann", Role.ADMIN, "interp")
    with sqlite3.connect(tmp_path / "db") as connection:
        dumped = "\n".join(connection.iterdump())
    assert "ann" in dumped
    assert secret.split("_")[2] not in dumped
    assert Tokens(open_database(f"sqlite:///{tmp_path}/db")).find(secret) == Principal("ann", Role.ADMIN, "interp")


def test_a_revoked_token_is_none(tokens: Tokens, clock: Clock) -> None:
    secret = tokens.create("ann", Role.ADMIN, "interp")
    tokens.revoke("ann")
    assert tokens.find(secret) is None
    (facts,) = tokens.all()
    assert facts.state(clock.now) == "revoked"
    clock.now += 5
    tokens.revoke("ann")
    assert tokens.all() == [facts]
    with pytest.raises(MissingError, match="did you mean 'ann'"):
        tokens.revoke("anna")
    with pytest.raises(MismatchError, match="there is, or was, a token named 'ann'"):
        tokens.create("ann", Role.VIEWER, "interp")


def test_a_token_expires(tokens: Tokens, clock: Clock) -> None:
    secret = tokens.create("ann", Role.VIEWER, "interp", clock.now + 10)
    assert tokens.find(secret)
    clock.now += 9.9
    assert tokens.find(secret)
    clock.now += 0.2
    assert tokens.find(secret) is None
    assert tokens.all()[0].state(clock.now) == "expired"
    with pytest.raises(SpecError, match="expired already"):
        tokens.create("ben", Role.VIEWER, "interp", clock.now)


def test_the_last_use_is_coarse(tokens: Tokens, clock: Clock) -> None:
    secret = tokens.create("ann", Role.VIEWER, "interp")
    assert tokens.all()[0].last_used is None
    tokens.find(secret)
    first = tokens.all()[0].last_used
    assert first is not None
    assert first <= clock.now
    assert first % LAST_USED_STEP_S == 0
    clock.now = first + LAST_USED_STEP_S - 1
    tokens.find(secret)
    assert tokens.all()[0].last_used == first
    clock.now += 2
    tokens.find(secret)
    assert tokens.all()[0].last_used == first + LAST_USED_STEP_S


@pytest.mark.parametrize(("name", "team"), [("", "a"), ("a b", "a"), ("a", "../x"), ("a" * 65, "a"), ("a", "a\n")])
def test_names_and_teams_are_names(tokens: Tokens, name: str, team: str) -> None:
    with pytest.raises(SpecError, match="expected letters"):
        tokens.create(name, Role.VIEWER, team)


def test_roles_include_those_below() -> None:
    may = {(role, other) for role in Role for other in Role if role.may_act_as(other)}
    assert len(may) == 6
    assert (Role.ADMIN, Role.VIEWER) in may
    assert (Role.VIEWER, Role.SUBMITTER) not in may
    assert Role("admin") is Role.ADMIN


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_different_random_bytes_make_different_secrets(one: bytes, other: bytes) -> None:
    assert len(_digits(one)) == 43
    assert (_digits(one) == _digits(other)) == (one == other)
