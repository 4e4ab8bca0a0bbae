"""What happened to a job, one JSON object a line, in a file beside its summary.

On a local disk lines are appended to ``[STORE.]events.jsonl`` as they come. Object stores cannot append: there every
process that writes has parts of its own, ``[STORE.]events.TIME-RANDOM.N.jsonl``, of about 1 MiB each; what a killed
process loses is what it said in its last minute. Readers sort by ``time``.

Every line has ``time`` (UTC), ``event``, ``job`` and ``run``, which is one for all processes of one run of a job.
Events are also log records of level INFO. Nothing here may fail a job: a log that cannot be written is said once.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from pipeline.logs import now, redacted_facts
from pipeline.store.objects import Objects
from schemas.collect import CollectSpec
from schemas.errors import HeadworksError
from schemas.pipeline import AnyJob
from schemas.shuffle import ShuffleSpec

SUMMARY = "summary.json"
EVENTS = "events.jsonl"
PART_BYTES = 2**20
WRITE_INTERVAL_S = 60.0
_TRACEBACK_CHARS = 8000

_log = logging.getLogger(__name__)


class EventLog:
    """The events of one run of a job. Picklable: a copy in another process writes to the same place."""

    def __init__(
        self, folder: str, name: str, *, job: str, run: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``name`` ends in ``events.jsonl``; ``folder`` may be a URL. Nothing is written before the first event."""
        self._place = folder, name
        self._job = job
        self.run = run or secrets.token_hex(4)
        self._clock = clock
        self._objects = Objects(folder)
        self._path = self._objects.local_path(name)
        self._writer = f"{now()[:19].replace(':', '').replace('-', '')}-{secrets.token_hex(3)}"
        self._part = 0
        self._lines: list[str] = []
        self._size_bytes = 0
        self._unwritten = False
        self._next_write_s = clock() + WRITE_INTERVAL_S
        self._is_broken = False
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Callable[..., EventLog], tuple[str, str, str, str]]:
        return _reopened, (*self._place, self._job, self.run)

    def emit(self, event: str, **facts: Any) -> None:
        """Add a line; ``facts`` are JSON values, their strings are written without secrets."""
        line = redacted_facts({"time": now(), "event": event, "job": self._job, "run": self.run, **facts})
        _log.info("%s", event, extra={"facts": line})
        with self._lock:  # jobs that run at the same time have a thread each
            if not self._is_broken:
                self._lines.append(json.dumps(line, default=str) + "\n")
                self._size_bytes += len(self._lines[-1])
                self._unwritten = True
                self._guarded(self._append if self._path is not None else self._write_when_due)

    def flush(self) -> None:
        """Make everything durable; called when a job ends."""
        with self._lock:
            if self._path is None and self._unwritten and not self._is_broken:
                self._guarded(self._write_part)

    def _append(self) -> None:
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # One write of whole lines to a file opened for appending: lines of several processes never mix.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, "".join(self._lines).encode())
        finally:
            os.close(descriptor)
        self._clear()

    def _write_when_due(self) -> None:
        if self._clock() >= self._next_write_s or self._size_bytes >= PART_BYTES:
            self._write_part()

    def _write_part(self) -> None:
        """Write the part anew with what has come since; a full one is left behind."""
        data = "".join(self._lines).encode()
        stem = self._place[1].removesuffix(".jsonl")
        self._objects.write(f"{stem}.{self._writer}.{self._part}.jsonl", data)
        self._unwritten = False
        self._next_write_s = self._clock() + WRITE_INTERVAL_S
        if self._size_bytes >= PART_BYTES:
            self._part += 1
            self._clear()

    def _clear(self) -> None:
        self._lines.clear()
        self._size_bytes = 0

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (HeadworksError, OSError) as error:
            self._is_broken = True
            _log.warning("events of %s are no longer written to %s: %s", self._job, "/".join(self._place), error)


def summary_place(job: AnyJob) -> tuple[str, str]:
    """``(folder, file name)`` of a job's summary: in its output, but beside a store, which holds only its own."""
    output = job.output.rstrip("/")
    if isinstance(job, CollectSpec | ShuffleSpec):
        folder, _, name = output.rpartition("/")
        return folder, f"{name}.{SUMMARY}"
    return output, SUMMARY


def events_name(summary: str) -> str:
    """The name of the file beside a summary: ``store.summary.json`` -> ``store.events.jsonl``."""
    return f"{summary.removesuffix('summary.json')}{EVENTS}"


def described(error: BaseException, printed: str = "") -> dict[str, str]:
    """Type, message and, of what is not one of Headworks' own errors, the end of the traceback; ``printed``: as it was
    where the error was raised, in another process."""
    facts = {"error": type(error).__name__, "message": str(error)}
    if not isinstance(error, HeadworksError):
        facts["traceback"] = (printed or "".join(traceback.format_exception(error)))[-_TRACEBACK_CHARS:]
    return facts


def _reopened(folder: str, name: str, job: str, run: str) -> EventLog:
    return EventLog(folder, name, job=job, run=run)
