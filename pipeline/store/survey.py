"""What a store says of itself, read so that damage is noted and not raised.

Every document must be, to the byte, the canonical JSON of a sealed record that belongs where it lies. One in which a
single bit was flipped is noted and mended in memory, so that what it names can be judged too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.store import layout
from pipeline.store.correction import corrected
from pipeline.store.documents import Record, parse, to_bytes, unsealed
from pipeline.store.ledger import in_order
from pipeline.store.log import FOLDER as LOG
from pipeline.store.log import Event, completion, log_key, opened_passes, planned_rows
from pipeline.store.objects import Objects
from schemas.errors import CorruptionError, MissingError
from schemas.fingerprint import canonical_json, fingerprint
from schemas.store import LedgerEntry, LogEntry, Manifest, PassOpened, PassRecord, RowsComplete, StoreRecord


@dataclass(frozen=True)
class Problem:
    """One thing that is not as committed."""

    key: str
    """Object below the store's root."""
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.key}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True)
class Found:
    """The ledger's entry of one unit, as far as it can be known."""

    entry: LedgerEntry | None
    """None of one that is gone or beyond mending. A sound one is without its statistics, which are much larger."""
    is_sound: bool
    """What is stored is the entry; not one that was mended, or found in another unit's place."""


@dataclass
class Survey:
    """The documents of one store. ``problems`` grows while they are read."""

    objects: Objects
    record: StoreRecord
    sizes: dict[str, int]
    """key -> length of every object, by one listing."""
    events: list[Event | None] = field(default_factory=list)
    """None for one that cannot be read."""
    passes: dict[str, PassRecord] = field(default_factory=dict)
    """Those of the log, and of ``passes/`` where the log has lost one."""
    manifest: Manifest | None = None
    """None where it is absent or beyond mending."""
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def of(cls, objects: Objects) -> Survey:
        """Read all documents but the ledger.

        Raises:
            MissingError: there is no store. MismatchError: it is of a newer format or not ours.
            CorruptionError: its record is damaged beyond mending, without which nothing else can be read.
        """
        record, problems = read_root(objects)
        survey = cls(objects, record, objects.sizes(), problems=problems)
        survey._require_own_record()
        survey._read_log()
        survey._read_passes()
        survey._read_groups_and_arrays()
        survey._read_manifest()
        return survey

    @property
    def shown(self) -> RowsComplete | None:
        """What the store shows as complete, by its log, or by its manifest where the log has lost it."""
        logged = completion([event for event in self.events if event is not None])
        if self.manifest is None:
            return logged
        says = RowsComplete(num_rows=self.manifest.num_rows, passes=tuple(self.manifest.passes))
        return says if logged is None or _is_beyond(says, logged) else logged

    @property
    def num_rows(self) -> int:
        """The most rows that any job planned."""
        shown = self.shown
        return max(planned_rows([e for e in self.events if e is not None]), shown.num_rows if shown else 0)

    def units(self, pass_: str) -> list[int]:
        """Units that the pass should have: those that are committed, and all that the store shows."""
        folder = layout.ledger_folder(pass_)
        listed = {layout.unit_of_ledger_key(key) for key in self.sizes if key.startswith(folder)}
        if (shown := self.shown) is not None and pass_ in shown.passes:
            listed.update(range(layout.num_units(shown.num_rows, self.record.shard_rows)))
        return sorted(listed)

    def read_ledger(self, pass_: str) -> Iterator[tuple[int, Found]]:
        """(unit, what was found), lost ones last; problems are noted."""
        strays: dict[int, LedgerEntry] = {}
        lost: list[int] = []
        units = self.units(pass_)
        read = in_order(self.objects, lambda unit: self._entry(pass_, unit), units)
        for unit, (entry, is_sound) in zip(units, read, strict=True):
            if entry is not None and (entry.pass_id, entry.unit) != (pass_, unit):
                self._note(layout.ledger_key(pass_, unit), f"unit {unit} of pass {pass_}", f"unit {entry.unit}")
                if entry.pass_id == pass_:
                    strays[entry.unit] = entry
                lost.append(unit)
            elif entry is None:
                lost.append(unit)
            else:
                yield unit, Found(_slim(entry) if is_sound else entry, is_sound)
        for unit in lost:
            yield unit, Found(strays.get(unit), is_sound=False)

    def _entry(self, pass_: str, unit: int) -> tuple[LedgerEntry | None, bool]:
        key = layout.ledger_key(pass_, unit)
        entry, is_sound = self._document(key, LedgerEntry, required="a ledger entry")
        if entry is not None and entry.store_fingerprint != self.record.fingerprint:
            self._note(key, f"an entry of the store {self.record.fingerprint}", f"one of {entry.store_fingerprint}")
            return None, False
        return entry, is_sound

    def _require_own_record(self) -> None:
        """Refuse the sound record of another store: judged by it, every entry of this one would be wrong."""
        asked = [key for key in self.sizes if key.startswith("ledger/")][:_ASKED]
        documents = [self._facts(key).get("store_fingerprint") for key in asked]
        documents.append(self._facts(layout.MANIFEST).get("fingerprint"))
        named = {one for one in documents if isinstance(one, str)}
        if named and self.record.fingerprint not in named:
            raise CorruptionError(
                f"{self.objects.url}/{layout.ROOT}: expected the record of the store {min(named)}, as its ledger and "
                f"manifest say, got that of {self.record.fingerprint}. {_REMEDY}"
            )

    def _facts(self, key: str) -> dict[str, Any]:
        try:
            return parse(self.objects.read(key), key)
        except (MissingError, CorruptionError):
            return {}

    def _read_log(self) -> None:
        keys = [key for key in self.sizes if key.startswith(LOG)]
        numbers = [int(digits) for key in keys if (digits := key[len(LOG) : -len(".json")]).isdecimal()]
        entries = [self._log_entry(number) for number in range(max(numbers, default=-1) + 1)]
        # Events that lie in each other's places are known, though both documents are damage.
        found = {entry.number: entry.event for entry in reversed(entries) if entry is not None}
        found |= {entry.number: entry.event for number, entry in enumerate(entries) if entry and entry.number == number}
        self.events = [found.get(number) for number in range(len(entries))]
        known = [event for event in self.events if event is not None]
        self.passes = opened_passes(known)

    def _log_entry(self, number: int) -> LogEntry | None:
        key = log_key(number)
        entry, _ = self._document(key, LogEntry, required="an event of the store's log")
        if entry is not None and entry.number != number:
            self._note(key, f"event {number} of the store's log", f"event {entry.number}")
        return entry

    def _read_passes(self) -> None:
        listed = [key.removeprefix("passes/").removesuffix(".json") for key in self.sizes if key.startswith("passes/")]
        ledgers = {key.split("/")[1] for key in self.sizes if key.startswith("ledger/")}
        for pass_ in sorted({*listed, *self.passes, *ledgers}):
            key = layout.pass_key(pass_)
            is_begun = pass_ in ledgers or pass_ in listed
            # Between a job's event and its other documents there is a moment in which it can be killed.
            stored, _ = self._document(key, PassRecord, required="the record of a pass" if is_begun else "")
            if stored is not None and layout.pass_id(stored) != pass_:
                self._note(key, f"the pass {pass_}", f"the pass {layout.pass_id(stored)}")
                stored = None
            if pass_ not in self.passes and stored is not None:
                self._note(log_key(len(self.events)), f"the event that opened the pass {pass_}", "no object")
                self.passes[pass_] = stored

    def _read_groups_and_arrays(self) -> None:
        for key in layout.plain_groups(self.record):
            self._compare(key, [to_bytes(layout.group_metadata(None))], "metadata of a group")
        shown = self.shown
        for pass_, one in self.passes.items():
            if layout.pass_key(pass_) not in self.sizes and not self.units(pass_):
                continue
            planned = [e.num_rows for e in self.events if isinstance(e, PassOpened) and e.pass_record == one]
            rows = {*planned, *([shown.num_rows] if shown and pass_ in shown.passes else [])}
            for hook, width in one.hook_points.items():
                choices = [layout.array_documents(self.record, hook, width, each, pass_) for each in sorted(rows)]
                for key in choices[0] if choices else []:
                    self._compare(key, [to_bytes(documents[key]) for documents in choices], "metadata of an array")

    def _read_manifest(self) -> None:
        logged = self.shown
        required = "the manifest of a complete store" if logged else ""
        manifest, _ = self._document(layout.MANIFEST, Manifest, required=required)
        if manifest is not None and manifest.fingerprint != self.record.fingerprint:
            self._note(layout.MANIFEST, f"that of the store {self.record.fingerprint}", f"of {manifest.fingerprint}")
            return
        self.manifest = manifest
        if manifest is None:
            return
        says = RowsComplete(num_rows=manifest.num_rows, passes=tuple(manifest.passes))
        if logged is None or _is_beyond(says, logged):
            self._note(log_key(len(self.events)), f"the event that completed {manifest.num_rows} rows", "no object")
        elif says != logged:
            self._note(layout.MANIFEST, f"{logged.num_rows} rows of {list(logged.passes)}",
                       f"{says.num_rows} rows of {list(says.passes)}")  # fmt: skip

    def _document(self, key: str, kind: type[Record], *, required: str) -> tuple[Record | None, bool]:
        """The record, mended if need be, and whether its canonical form is what is stored; else a problem is noted."""
        try:
            raw = self.objects.read(key)
        except MissingError:
            if required:
                self._note(key, required, "no object")
            return None, False
        try:
            facts = parse(raw, key)
            record = unsealed(facts, kind, key)
        except CorruptionError as exc:
            self._note(key, "what was committed", str(exc).removeprefix(f"{key}: "))
            return self._mended(key, kind), False
        if raw == to_bytes(facts):
            return record, True
        self._note(key, "canonical JSON", "other bytes of the same meaning")
        return record, False

    def _mended(self, key: str, kind: type[Record]) -> Record | None:
        try:
            return corrected(_first_value(self.objects.read(key)), kind)
        except MissingError:
            return None

    def _compare(self, key: str, allowed: list[bytes], what: str) -> None:
        try:
            raw = self.objects.read(key)
        except MissingError:
            self._note(key, what, "no object")
            return
        if raw not in allowed:
            self._note(key, f"{what}: {allowed[-1].decode().strip()}", raw.decode(errors="replace").strip())

    def _note(self, key: str, expected: str, got: str) -> None:
        self.problems.append(Problem(key, expected, got))


def _is_beyond(says: RowsComplete, logged: RowsComplete) -> bool:
    """What was shown is never lost again, so of two completions that differ one has all that the other has."""
    return says.num_rows > logged.num_rows or not {*says.passes} <= {*logged.passes}


def read_root(objects: Objects) -> tuple[StoreRecord, list[Problem]]:
    """The store's record, mended if need be, and what is wrong with its document.

    Raises: as ``Survey.of``.
    """
    try:
        record = layout.read_record(objects)
    except MissingError as exc:
        if objects.list("ledger/"):
            raise CorruptionError(f"{objects.url}/{layout.ROOT} is gone. {_REMEDY}") from exc
        raise
    except CorruptionError as exc:
        mended = _mended_root(objects)
        if mended is None:
            raise CorruptionError(f"{exc}. {_REMEDY}") from exc
        return mended, [Problem(layout.ROOT, "the store's record", str(exc))]
    raw = objects.read(layout.ROOT)
    if raw == to_bytes(layout.group_metadata(record)):
        return record, []
    return record, [Problem(layout.ROOT, "canonical JSON", "other bytes of the same meaning")]


_ASKED = 3
"""Ledger entries that are asked whose record this is; a bit may be flipped in one of them."""

_REMEDY = (
    "Without the record nothing says what the bytes mean. Delete it if it is there and run the job that made the store "
    "again (`headworks run SPEC`): it writes an equal record and computes nothing that is in the ledger"
)


def _mended_root(objects: Objects) -> StoreRecord | None:
    """The sealed record lies between a fixed beginning and end of the group's JSON."""
    raw = _first_value(objects.read(layout.ROOT))
    group = {"attributes": {"headworks": 0}, "node_type": "group", "zarr_format": 3}
    begin, end = canonical_json(group).split(b"0}", 1)
    record = corrected(raw[len(begin) : len(raw) - len(end) - 1], StoreRecord)
    return record if record is not None and record.fingerprint == fingerprint(record.identity) else None


def _first_value(raw: bytes) -> bytes:
    """Without what was appended to a document's JSON; as it is where that is not JSON."""
    text = raw.decode("latin-1")  # byte for byte, whatever was flipped
    try:
        return raw[: json.JSONDecoder().raw_decode(text)[1]]
    except ValueError:
        return raw.removesuffix(b"\n")


def _slim(entry: LedgerEntry) -> LedgerEntry:
    return entry.model_copy(update={"statistics": {}})
