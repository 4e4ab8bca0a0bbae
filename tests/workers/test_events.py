"""The event log: every event is one line beside the summary, from any process, on any storage, without secrets."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.objects import Objects
from workers import events
from workers.events import EventLog, events_name


def lines(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.decode().splitlines()]


def test_the_file_lies_beside_the_summary() -> None:
    assert events_name("store.summary.json") == "store.events.jsonl"
    assert events_name("summary.json") == "events.jsonl"


def test_copies_in_several_processes_append_to_one_local_file(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path / "new"), "a.events.jsonl", job="c")
    copy = pickle.loads(pickle.dumps(log))
    log.emit("job.started", kind="collect")
    copy.emit("unit.committed", unit=3, seconds={"forward": 0.5})
    log.emit("job.ended", error="s3://KEY:SECRET@bucket")
    found = lines((tmp_path / "new" / "a.events.jsonl").read_bytes())
    assert [line["event"] for line in found] == ["job.started", "unit.committed", "job.ended"]
    assert {(line["job"], line["run"]) for line in found} == {("c", log.run)}
    assert found[1]["seconds"] == {"forward": 0.5}
    assert found[2]["error"] == "s3://***@bucket"
    assert found[0]["time"].endswith("+00:00")


def test_parts_on_object_storage_are_written_in_time_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PART_BYTES", 1000)
    clock = [0.0]
    log = EventLog("memory://events-test/run", "events.jsonl", job="c", clock=lambda: clock[0])
    objects = Objects("memory://events-test/run")
    log.emit("first")
    assert objects.list() == []
    clock[0] = events.WRITE_INTERVAL_S
    log.emit("second")
    assert len(objects.list()) == 1
    for number in range(40):
        log.emit("unit.committed", unit=number)
    log.emit("last")
    log.flush()
    names = objects.list()
    assert len(names) > 3
    assert all(name.startswith("events.") and name.endswith(".jsonl") for name in names)
    found = sorted((line for name in names for line in lines(objects.read(name))), key=lambda line: line["time"])
    assert sorted(line.get("unit", -1) for line in found) == [-1, -1, -1, *range(40)]
    assert {line["event"] for line in found} == {"first", "second", "unit.committed", "last"}


def test_a_log_that_cannot_be_written_is_said_once_and_fails_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    log = EventLog(str(tmp_path / "taken"), "events.jsonl", job="c")
    with caplog.at_level(logging.WARNING, "workers.events"):
        log.emit("one")
        log.emit("two")
        log.flush()
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
