"""The audit log: added to, never changed; what was changed or taken out is found."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from deploy.service.access import Principal, Role
from deploy.service.audit import Audit, AuditRecord, Head, client_address
from deploy.service.database import open_database
from schemas.errors import BusyError, CorruptionError

ANN = Principal("ann", Role.SUBMITTER, "interp")


def log_of(count: int) -> tuple[Engine, Audit]:
    engine = open_database("sqlite://")
    found = Audit(engine)
    for index in range(count):
        found.record(ANN, "job.submit", f"job-{index}", "ok", {"attempt": index})
    return engine, found


def tampered(engine: Engine, statement: str) -> None:
    """As somebody does who has the file: the triggers do not stop them."""
    with engine.begin() as connection:
        connection.execute(text("DROP TRIGGER IF EXISTS audit_no_update"))
        connection.execute(text("DROP TRIGGER IF EXISTS audit_no_delete"))
        connection.execute(text(statement))


def test_records_are_read_newest_first() -> None:
    _, found = log_of(5)
    found.record(None, "login", "/api", "denied", address="10.0.0.1")
    newest, *_ = found.read()
    assert (newest.sequence, newest.principal, newest.team, newest.address) == (6, "-", "-", "10.0.0.1")
    assert [each.sequence for each in found.read(limit=2)] == [6, 5]
    assert [each.sequence for each in found.read(before=3)] == [2, 1]
    assert [each.sequence for each in found.read({"outcome": "denied"})] == [6]
    assert found.read({"principal": "ann"}, limit=1)[0].facts == {"attempt": 4}
    assert found.verify().sequence == 6


def test_an_empty_log_is_whole() -> None:
    _, found = log_of(0)
    assert found.verify() == Head(0, "0" * 64)
    assert found.read() == []


@pytest.mark.parametrize("verb", ["UPDATE audit SET outcome = 'x'", "DELETE FROM audit"])
def test_the_database_refuses_changes(verb: str) -> None:
    engine, found = log_of(2)
    with pytest.raises(IntegrityError, match="only ever added to"), engine.begin() as connection:
        connection.execute(text(verb))
    assert found.verify().sequence == 2


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.sampled_from(["time", "principal", "team", "action", "subject", "outcome", "address", "facts", "digest"]),
)
def test_any_changed_field_is_found(sequence: int, column: str) -> None:
    engine, found = log_of(6)
    value = "time + 0.5" if column == "time" else "'{}'" if column == "facts" else f"{column} || 'x'"
    tampered(engine, f"UPDATE audit SET {column} = {value} WHERE sequence = {sequence}")
    with pytest.raises(CorruptionError, match=f"record {sequence} "):
        found.verify()


@pytest.mark.parametrize("sequence", [1, 2, 3])
def test_a_removed_line_is_found(sequence: int) -> None:
    engine, found = log_of(4)
    tampered(engine, f"DELETE FROM audit WHERE sequence = {sequence}")
    with pytest.raises(CorruptionError, match=f"expected record {sequence}, got {sequence + 1}"):
        found.verify()
    tampered(engine, f"UPDATE audit SET sequence = sequence - 1 WHERE sequence > {sequence}")
    with pytest.raises(CorruptionError, match=f"record {sequence} does not have the digest"):
        found.verify()


def test_swapped_lines_are_found() -> None:
    engine, found = log_of(3)
    for statement in ("-1 WHERE sequence = 1", "1 WHERE sequence = 2", "2 WHERE sequence = -1"):
        tampered(engine, f"UPDATE audit SET sequence = {statement}")
    with pytest.raises(CorruptionError, match="record 1 "):
        found.verify()


def test_lines_cut_off_at_the_end_are_found_with_a_noted_head() -> None:
    engine, found = log_of(4)
    noted = found.verify()
    found.record(ANN, "job.stop", "job-1", "ok")
    assert found.verify(noted).sequence == 5
    tampered(engine, "DELETE FROM audit WHERE sequence > 3")
    assert found.verify().sequence == 3
    with pytest.raises(CorruptionError, match=f"expected to find the head 4:{noted.digest}"):
        found.verify(noted)


def test_many_writers_make_one_chain(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/db"
    open_database(url)
    logs = [Audit(open_database(url)) for _ in range(4)]

    def write(log: Audit) -> None:
        for index in range(10):
            log.record(ANN, "x", str(index), "ok")

    threads = [threading.Thread(target=write, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logs[0].verify().sequence == 40


def test_a_record_that_another_writer_was_faster_with_is_chained_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a database whose transactions do not shut each other out."""
    _, found = log_of(1)
    record_in, losses = found.record_in, [True]

    def second(*arguments: Any, **options: Any) -> AuditRecord:
        if losses and losses.pop():
            raise IntegrityError("insert", {}, Exception("duplicate key"))
        return record_in(*arguments, **options)

    monkeypatch.setattr(found, "record_in", second)
    assert found.record(ANN, "x", "y", "ok").sequence == 2
    losses += [True] * 20
    with pytest.raises(BusyError, match="did not take a record"):
        found.record(ANN, "x", "y", "ok")


def test_secrets_and_line_breaks_stay_out() -> None:
    _, found = log_of(0)
    token = f"hw_{'a' * 12}_{'b' * 43}"
    client_address.set("10.1.2.3")
    made = found.record(ANN, "job.submit", f"x\ny {token} s3://K:SECRET@b", "ok", {"error": f"Bearer {token}", "n": 3})
    client_address.set("")
    assert made == found.read()[0]
    assert made.subject == "x y hw_*** s3://***@b"
    assert token not in str(made)
    assert "SECRET" not in str(made)
    assert made.facts["n"] == 3
    assert made.address == "10.1.2.3"


def test_long_texts_are_cut() -> None:
    _, found = log_of(0)
    made = found.record(ANN, "x", "y" * 5000, "ok" * 100, {"message": "z" * 10**6})
    assert (len(made.subject), len(made.outcome), len(made.facts["message"])) == (1003, 64, 1003)
    assert found.verify().sequence == 1
