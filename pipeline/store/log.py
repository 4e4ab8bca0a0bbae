"""The store's log: what puts jobs that write one store at the same time into one order.

``log/NUMBER8.json``, numbered from 0 without gaps, each put-if-absent. To add an event a job reads all events, decides
on them, and creates the next number; if another job was faster it reads that event and decides anew. So every
decision is made on everything decided before it: a hook point has one owner, and no completion is forgotten, with
put-if-absent alone and without locks. There are a few events for each job, never one for each unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.store.documents import parse, sealed, to_bytes, unsealed
from pipeline.store.layout import pass_id
from pipeline.store.objects import Objects
from schemas.errors import CorruptionError, MissingError
from schemas.store import LogEntry, PassOpened, PassRecord, RowsComplete

Event = PassOpened | RowsComplete

FOLDER = "log/"


def log_key(number: int) -> str:
    return f"{FOLDER}{number:08d}.json"


class StoreLog:
    """The events of one store, oldest first. Events never change, so those that were read once are kept."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._known: list[Event] = []

    def read(self) -> list[Event]:
        """All events that there are now.

        Raises:
            CorruptionError: one is altered, or one is missing among them.
        """
        numbers = [_number(key, self.objects.url) for key in self.objects.list(FOLDER)]
        # A listing made while others write may leave out a name and have a later one: numbers are read, not names.
        for number in range(len(self._known), max(numbers, default=-1) + 1):
            self._known.append(self._event(number))
        return list(self._known)

    def append(self, decide: Callable[[list[Event]], Event | None]) -> list[Event]:
        """Add the event that ``decide`` makes of all events before it, or nothing for None; all events then.

        ``decide`` is called again whenever another job was faster; what it raises ends the attempt, nothing is written.
        """
        while True:
            events = self.read()
            event = decide(events)
            if event is None:
                return events
            entry = LogEntry(number=len(events), event=event)
            if self.objects.create(log_key(len(events)), to_bytes(sealed(entry))):
                self._known.append(event)
                return [*events, event]

    def _event(self, number: int) -> Event:
        where = f"{self.objects.url}/{log_key(number)}"
        try:
            facts = parse(self.objects.read(log_key(number)), where)
        except MissingError as exc:
            raise CorruptionError(f"{where}: expected an event of the store's log, got no object") from exc
        entry = unsealed(facts, LogEntry, where)
        if entry.number != number:
            raise CorruptionError(f"{where}: expected event {number} of the store's log, got event {entry.number}")
        return entry.event


def _number(key: str, url: str) -> int:
    digits = key.removeprefix(FOLDER).removesuffix(".json")
    if not (digits.isdecimal() and key == log_key(int(digits))):
        raise CorruptionError(f"{url}/{key}: expected an event NUMBER.json of the store's log, got another name")
    return int(digits)


def opened_passes(events: Sequence[Event]) -> dict[str, PassRecord]:
    """pass id -> record of every pass that a job has begun, oldest first."""
    return {pass_id(one.pass_record): one.pass_record for one in events if isinstance(one, PassOpened)}


def completion(events: Sequence[Event]) -> RowsComplete | None:
    """What the store shows, or None of one that was never complete."""
    return next((one for one in reversed(events) if isinstance(one, RowsComplete)), None)


def planned_rows(events: Sequence[Event]) -> int:
    """The most rows that any job planned; 0 of a store that no job has begun."""
    return max((one.num_rows for one in events if isinstance(one, PassOpened)), default=0)
