"""Repairing a store: what is damaged is written anew from what is sound, and nothing else is touched.

1. Documents, from each other and from their own checksums (``pipeline.store.restoring``).
2. Token rows, from the token table.
3. Units: ledger entries that can be mended are; damaged objects, and units whose entry is lost, are collected again
   with the model. Where the bytes are those that the ledger names, only the object is replaced. Where they are not, as
   other hardware may have it, first the object is, then the ledger entry.
4. The manifest, computed from the ledger.

Every step replaces whole objects atomically, and a kill between any two leaves damage that the next repair finds: an
object that is not its entry's, or a ledger that is not the manifest's. One process does it, without Ray: damage is a
few units, and a store of which much is gone is better collected anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

from pipeline.collection.recomputing import Recomputer, Staged, collect_spec
from pipeline.collection.store_tokens import StoreTokens, open_table
from pipeline.collection.unit import RowSource
from pipeline.store import layout
from pipeline.store.checksums import crc32c_hex
from pipeline.store.documents import sealed, to_bytes
from pipeline.store.leases import held
from pipeline.store.ledger import Ledger
from pipeline.store.objects import Objects
from pipeline.store.restoring import Action, drafts, restore_manifest
from pipeline.store.rows import TokenRows
from pipeline.store.survey import Found, Problem, read_root
from pipeline.store.verification import Inspection, Progress, inspect, unit_names
from schemas.errors import CorruptionError, DataError, MissingError, UserError
from schemas.store import LedgerEntry, ObjectReceipt


@dataclass(frozen=True)
class Places:
    """Where things are now that the store's record remembers somewhere else; empty: as it says."""

    tokens: str = ""
    model: str = ""
    device: str = ""


@dataclass(frozen=True)
class Repair:
    """What was found, what was done about it, and what is left."""

    problems: list[Problem]
    actions: list[Action]
    remaining: list[Problem]
    """Of a rehearsal: what a repair would leave."""


def repair(
    url: str, *, places: Places | None = None, is_rehearsal: bool = False, progress: Progress | None = None
) -> Repair:
    """Find all damage and mend what can be; ``progress`` is of the reading that comes first.

    Raises:
        MissingError: there is no store. BusyError: a job holds a lease on it; says whose.
        CorruptionError: the record is gone or beyond mending; says what to do.
    """
    objects = Objects(url)
    read_root(objects)  # where there is no store no lease shall be put either
    with nullcontext() if is_rehearsal else held(objects, "repair", is_exclusive=True):
        before = inspect(objects, is_deep=True, progress=progress)
        if not before.problems:
            return Repair([], [], [])
        work = _Work(objects, before, places or Places(), is_rehearsal)
        actions = [*work.carry_out()]
        failed = {action.key for action in actions if not action.is_possible}
        remaining = [problem for problem in before.problems if problem.key in failed]
        if not is_rehearsal:
            known = {problem.key for problem in remaining}
            remaining += [one for one in inspect(objects, is_deep=False).problems if one.key not in known]
        return Repair(before.problems, actions, remaining)


@dataclass
class _Work:
    """One repair. ``entries`` follows what is written."""

    objects: Objects
    before: Inspection
    places: Places
    is_rehearsal: bool
    entries: dict[tuple[str, int], Found] = field(default_factory=dict)
    recomputers: dict[str, Recomputer] = field(default_factory=dict)
    trusted: dict[str, str] = field(default_factory=dict)
    """pass id -> why its model is not believed, empty of one that gives the stored numbers."""

    def __post_init__(self) -> None:
        self.survey = self.before.survey
        self.record = self.survey.record
        self.damaged = self.before.damaged
        self.entries = dict(self.before.entries)
        num_rows = self.survey.num_rows
        self.table, self.no_table = open_table(self.record, num_rows=num_rows, url=self.places.tokens)

    def carry_out(self) -> Iterator[Action]:
        """Each action as soon as it is done."""
        for draft in drafts(self.survey, self.damaged):
            self._write(draft.key, draft.data)
            yield Action(draft.key, f"written anew, {draft.source}")
        for unit in sorted({unit for _, unit in self.entries}):
            if layout.tokens_key(unit) in self.damaged:
                yield from self._token_rows(unit)
        failed = False
        for (pass_, unit), found in sorted(self.entries.items()):
            for action in self._unit(pass_, unit, found):
                failed |= not action.is_possible
                yield action
        yield from self._manifest(failed)

    def _manifest(self, failed: bool) -> Iterator[Action]:
        try:
            if not failed:
                yield from restore_manifest(self.survey, self.damaged, is_rehearsal=self.is_rehearsal)
            elif layout.MANIFEST in self.damaged:
                yield Action(layout.MANIFEST, "waits until every unit can be repaired", is_possible=False)
        except DataError as exc:
            yield Action(layout.MANIFEST, f"cannot be computed: {exc}", is_possible=False)

    def _write(self, key: str, data: bytes) -> None:
        if not self.is_rehearsal:
            self.objects.write(key, data)

    def _rows(self) -> RowSource:
        """The token table; where it is gone, the store's own rows."""
        if self.table is not None:
            return self.table
        shard_rows, num_rows = self.record.shard_rows, self.survey.num_rows
        return StoreTokens(self.objects, self._receipt, shard_rows=shard_rows, num_rows=num_rows)

    def _receipt(self, unit: int) -> ObjectReceipt | None:
        """Of the unit's token rows, from whichever pass has an entry."""
        entries = (found.entry for (_, each), found in self.entries.items() if each == unit)
        return next(
            (entry.objects[layout.TOKENS] for entry in entries if entry and layout.TOKENS in entry.objects), None
        )

    def _bounds(self, unit: int) -> tuple[int, int]:
        return layout.unit_rows(unit, self.survey.num_rows, self.record.shard_rows)

    def _token_rows(self, unit: int) -> Iterator[Action]:
        key = layout.tokens_key(unit)
        if self.table is None:
            remedy = (
                "Make it again with the job of the store (`headworks run SPEC`), or say where it is (--tokens URL)."
            )
            yield Action(key, f"needs the token table: {self.no_table}. {remedy}", is_possible=False)
            return
        data = self.table.rows(*self._bounds(unit)).to_parquet()
        self._write(key, data)
        receipt = ObjectReceipt(key=key, size_bytes=len(data), crc32c=crc32c_hex(data))
        if receipt == self._receipt(unit):
            yield Action(key, "written anew from the token table: the very bytes that were committed")
            return
        # Equal rows, other bytes: another version of pyarrow. Every pass names this object.
        yield Action(key, "written anew from the token table; ledger entries that name it are replaced")
        for (pass_, each), found in [*self.entries.items()]:
            if each == unit and found.entry is not None:
                whole = (
                    found.entry
                    if not found.is_sound
                    else Ledger(self.objects, pass_, self.record.fingerprint).read(unit)
                )
                assert whole is not None, "an entry that was sound a moment ago"
                self._commit(whole.model_copy(update={"objects": {**whole.objects, layout.TOKENS: receipt}}))
                yield Action(layout.ledger_key(pass_, unit), "names the new token rows")

    def _commit(self, entry: LedgerEntry) -> None:
        """Replace the unit's entry."""
        self._write(layout.ledger_key(entry.pass_id, entry.unit), to_bytes(sealed(entry)))
        self.entries[entry.pass_id, entry.unit] = Found(entry, is_sound=True)

    def _unit(self, pass_: str, unit: int, found: Found) -> Iterator[Action]:
        found = self.entries[pass_, unit]
        key = layout.ledger_key(pass_, unit)
        names = unit_names(self.record, self.survey.passes[pass_], unit)
        if found.entry is not None and not found.is_sound:
            self._commit(found.entry)
            yield Action(key, "written anew: mended by its own checksum, or found in another unit's place")
        elif found.entry is not None and key in self.damaged:
            found = Found(None, is_sound=False)  # sound as a document, but not what this unit's entry must say
        bad = [name for name, place in names.items() if place in self.damaged and name != layout.TOKENS]
        if found.entry is not None and not bad:
            return
        wanted = [names[name] for name in bad] or [key]
        try:
            if self.is_rehearsal:
                spec = collect_spec(self.record, model=self.places.model)
                yield from (
                    Action(each, f"would be collected again with the model {spec.model.path}") for each in wanted
                )
            else:
                yield from self._collected(pass_, unit, found.entry, bad)
        except (UserError, DataError) as exc:
            yield from (Action(each, f"cannot be collected again: {exc}", is_possible=False) for each in wanted)

    def _collected(self, pass_: str, unit: int, entry: LedgerEntry | None, bad: list[str]) -> Iterator[Action]:
        recomputer = self._recomputer(pass_)
        with recomputer.staged(unit, self._sound(pass_, unit, entry)) as staged:
            committed = entry.objects if entry else {}
            differing = [name for name, receipt in staged.entry.objects.items() if committed.get(name) != receipt]
            if differing:
                self._require_whole_contexts(unit)
            if entry is not None and differing:
                self._require_trust(pass_)
            for name in sorted({*bad, *differing}):
                self._replace(staged, name)
            how = "the very bytes that were committed"
            if entry is None:
                how = "its ledger entry was lost, so the whole unit was compared"
            elif differing:
                how = (
                    "low bits differ from those committed, as on other hardware; ledger entry and manifest are replaced"
                )
            yield from (Action(staged.entry.objects[name].key, f"collected again: {how}") for name in bad)
            if differing:
                self._commit(staged.entry)
                yield Action(layout.ledger_key(pass_, unit), f"written anew: {how}")

    def _replace(self, staged: Staged, name: str) -> None:
        """Put the object, unless these very bytes are there."""
        key = staged.entry.objects[name].key
        data = staged.objects.read(key)
        try:
            if self.objects.read(key) == data:
                return
        except MissingError:
            pass
        self.objects.write(key, data)

    def _sound(self, pass_: str, unit: int, entry: LedgerEntry | None) -> Iterator[tuple[str, bytes]]:
        """Objects of the unit that stay. Without an entry nothing vouches for any but the token rows, by content."""
        if entry is None:
            key = layout.tokens_key(unit)
            try:
                data = self.objects.read(key)
                if TokenRows.from_parquet(data) == self._rows().rows(*self._bounds(unit)):
                    yield key, data
            except (MissingError, CorruptionError):
                pass
            return
        for receipt in entry.objects.values():
            if receipt.key not in self.damaged or receipt.key == layout.tokens_key(unit):
                yield receipt.key, self.objects.read(receipt.key)

    def _recomputer(self, pass_: str) -> Recomputer:
        if pass_ not in self.recomputers:
            self.recomputers.clear()  # one model in memory at a time
            spec = collect_spec(self.record, model=self.places.model, device=self.places.device)
            self.recomputers[pass_] = Recomputer.open(
                self.record, self.survey.passes[pass_], self._rows(), num_rows=self.survey.num_rows, spec=spec
            )
        return self.recomputers[pass_]

    def _require_whole_contexts(self, unit: int) -> None:
        """Without the token table the store's last context may be cut, and its rows would not be those of the model."""
        if self.table is None and self._rows().covering(*self._bounds(unit))[1] == self.survey.num_rows:
            raise MissingError(f"its last context may go on behind the store's last row, and {self.no_table}")

    def _require_trust(self, pass_: str) -> None:
        """Other bytes than committed are believed only from a model that gives, of a sound unit, the numbers stored."""
        if pass_ not in self.trusted:
            self.trusted[pass_] = self._distrust(pass_)
        if self.trusted[pass_]:
            raise CorruptionError(self.trusted[pass_])

    def _distrust(self, pass_: str) -> str:
        for (each, unit), found in sorted(self.entries.items()):
            names = unit_names(self.record, self.survey.passes[pass_], unit)
            if each == pass_ and found.entry and not {*names.values(), layout.ledger_key(each, unit)} & self.damaged:
                differences = self._recomputer(pass_).compare(self.objects, found.entry)
                wrong = [str(one) for one in differences if not one.is_low_bits]
                return "the model gives other numbers here than those stored: " + "; ".join(wrong) if wrong else ""
        return ""  # nothing sound is left to compare with
