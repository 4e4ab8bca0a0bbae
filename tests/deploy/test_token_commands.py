"""``headworks tokens`` and ``headworks audit``: secrets shown once, what was done recorded, what was changed found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from deploy.service.access import Principal, Role, Tokens
from deploy.service.database import open_database

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that all commands of a test are about."""
    monkeypatch.setenv("HEADWORKS_DATABASE", f"sqlite:///{tmp_path}/db")


def test_a_token_from_its_making_to_its_end(headworks: Run, tmp_path: Path) -> None:
    code, secret, said = headworks("tokens", "create", "ann", "--role", "submitter", "--team", "interp")
    assert code == 0
    assert "Shown this once" in said
    known = Tokens(open_database(f"sqlite:///{tmp_path}/db"))
    assert known.find(secret.strip()) == Principal("ann", Role.SUBMITTER, "interp")

    code, shown, _ = headworks("tokens", "list")
    assert secret.strip().split("_")[2] not in shown
    assert shown.splitlines()[1].split()[:4] == ["ann", "submitter", "interp", "active"]
    (facts,) = json.loads(headworks("tokens", "list", "--json")[1])
    assert 89 * 86400 < facts["expires"] - time.time() <= 90 * 86400

    assert headworks("tokens", "revoke", "ann")[:2] == (0, "ann is revoked\n")
    assert known.find(secret.strip()) is None
    assert "revoked" in headworks("tokens", "list")[1]

    code, shown, _ = headworks("audit", "list")
    assert "token.create" in shown
    assert "token.revoke" in shown
    assert secret.strip() not in shown
    records = json.loads(headworks("audit", "list", "--action", "token.create", "--json")[1])
    assert [record["facts"]["role"] for record in records] == ["submitter"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("create", "a b", "--role", "admin", "--team", "x"), "name 'a b': expected letters"),
        (("create", "a", "--role", "root", "--team", "x"), "'root' is not one of"),
        (("create", "a", "--role", "admin", "--team", "x", "--expires", "90"), "--expires 90: a duration is"),
        (("create", "a", "--role", "admin", "--team", "x", "--expires", "0s"), "expired already"),
        (("revoke", "nobody"), "no token named 'nobody'"),
        (("list", "--database", "mysql://x"), "expected sqlite:///FILE"),
    ],
)
def test_mistakes_are_one_message(headworks: Run, words: tuple[str, ...], wanted: str) -> None:
    code, _, said = headworks("tokens", *words)
    assert code == 2
    assert wanted in said


def test_a_name_is_given_once(headworks: Run) -> None:
    words = ("tokens", "create", "ann", "--role", "viewer", "--team", "x", "--expires", "never")
    assert headworks(*words)[0] == 0
    assert headworks(*words)[0] == 2
    assert json.loads(headworks("tokens", "list", "--json")[1])[0]["expires"] is None


def test_a_removed_line_is_found_by_verify(headworks: Run, tmp_path: Path) -> None:
    assert "0 records" in headworks("audit", "verify")[1]
    for name in ("ann", "ben", "cat"):
        headworks("tokens", "create", name, "--role", "viewer", "--team", "x")
    code, said, _ = headworks("audit", "verify")
    assert code == 0
    head = said.split("head ")[1].strip()
    assert headworks("audit", "verify", "--head", head)[0] == 0
    assert headworks("audit", "verify", "--head", "3")[0] == 2

    with open_database(f"sqlite:///{tmp_path}/db").begin() as connection:
        connection.execute(text("DROP TRIGGER audit_no_delete"))
        connection.execute(text("DELETE FROM audit WHERE sequence = 3"))
    assert headworks("audit", "verify")[0] == 0
    code, _, said = headworks("audit", "verify", "--head", head)
    assert code == 1
    assert "records were taken off the end" in said
    with open_database(f"sqlite:///{tmp_path}/db").begin() as connection:
        connection.execute(text("DELETE FROM audit WHERE sequence = 1"))
    assert headworks("audit", "verify")[0] == 1
