"""Looking for damage: every document, every length, and with ``is_deep`` every byte, against the ledger."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

from pipeline.store import layout
from pipeline.store.comoments import comoments_key, comoments_name
from pipeline.store.ledger import REQUESTS_AT_ONCE, ledger_digest
from pipeline.store.objects import Objects
from pipeline.store.sources import Source, open_source
from pipeline.store.survey import Found, Problem, Survey
from pipeline.store.unit_objects import UnitObjects
from schemas.errors import DataError
from schemas.store import LedgerEntry, ObjectReceipt, PassRecord, StoreRecord

Progress = Callable[[int, int], None]
"""Called with the bytes that are checked and those that there are."""

_TICK_S = 1.0


@dataclass(frozen=True)
class Inspection:
    """What was found."""

    survey: Survey
    problems: list[Problem]
    """By kind of document, then by pass and unit; empty of a sound store."""
    entries: dict[tuple[str, int], Found] = field(default_factory=dict)
    """(pass, unit) -> its entry, of every unit that there should be."""
    num_objects: int = 0
    """Objects that the ledger names."""
    size_bytes: int = 0
    """Theirs."""

    @property
    def damaged(self) -> set[str]:
        """Keys of all problems."""
        return {problem.key for problem in self.problems}


def inspect(objects: Objects, *, is_deep: bool, progress: Progress | None = None) -> Inspection:
    """Look at the whole store; damage is returned, not raised.

    Raises:
        MissingError: there is no store. MismatchError: it is of a newer format or not ours.
        CorruptionError: its record is beyond mending, so that nothing else can be judged.
        UnreachableError: the storage does not answer.
    """
    survey = Survey.of(objects)
    entries: dict[tuple[str, int], Found] = {}
    for pass_ in sorted(survey.passes):
        for unit, found in survey.read_ledger(pass_):
            entries[pass_, unit] = found
    known = [found.entry for _, found in sorted(entries.items()) if found.entry is not None]
    problems = survey.problems
    for entry in known:
        problems += _of_entry(entry, survey)
    named = _named(known, survey)
    problems += _of_lengths([one.receipt for one in named], survey.sizes)
    problems += _of_digest(survey, known)
    if is_deep:
        whole = [one for one in named if survey.sizes.get(one.receipt.key) == one.receipt.size_bytes]
        problems += _of_bytes(survey, whole, progress or (lambda done, total: None))
    size_bytes = sum(one.receipt.size_bytes for one in named)
    return Inspection(survey, problems, entries, len(named), size_bytes)


@dataclass(frozen=True)
class _Named:
    """An object that the ledger, or the manifest, names."""

    receipt: ObjectReceipt
    name: str
    entry: LedgerEntry | None


def _named(entries: list[LedgerEntry], survey: Survey) -> list[_Named]:
    """Each once, though all passes name the token rows."""
    found = {
        (receipt.key, receipt.crc32c): _Named(receipt, name, entry)
        for entry in entries
        for name, receipt in entry.objects.items()
    }
    covariances = survey.manifest.covariances if survey.manifest else {}
    return [*found.values(), *(_Named(receipt, name, None) for name, receipt in covariances.items())]


def unit_names(record: StoreRecord, one: PassRecord, unit: int) -> dict[str, str]:
    """Name -> key of every object that the entry of a unit must name."""
    names = {layout.TOKENS: layout.tokens_key(unit)}
    for hook in one.hook_points:
        names |= layout.unit_keys(record, hook, unit)
        if one.covariance:
            names[comoments_name(hook)] = comoments_key(hook, unit)
    return names


def _of_entry(entry: LedgerEntry, survey: Survey) -> Iterator[Problem]:
    """The rows that an entry must have, and the objects that it must name, under the keys that they must have."""
    place = layout.ledger_key(entry.pass_id, entry.unit)
    keys = unit_names(survey.record, survey.passes[entry.pass_id], entry.unit)
    got = {name: receipt.key for name, receipt in entry.objects.items()}
    if got != keys:
        yield Problem(place, f"objects {keys}", str(got))
    start, stop = layout.unit_rows(entry.unit, survey.num_rows, survey.record.shard_rows)
    if start < stop and (entry.start_row, entry.num_rows) != (start, stop - start):
        yield Problem(place, f"rows [{start}, {stop})", f"[{entry.start_row}, {entry.start_row + entry.num_rows})")


def _of_lengths(receipts: list[ObjectReceipt], sizes: dict[str, int]) -> Iterator[Problem]:
    for receipt in receipts:
        got = sizes.get(receipt.key)
        if got != receipt.size_bytes:
            yield Problem(receipt.key, f"{receipt.size_bytes} bytes", "no object" if got is None else f"{got} bytes")


def _of_digest(survey: Survey, entries: list[LedgerEntry]) -> Iterator[Problem]:
    manifest = survey.manifest
    if manifest is None:
        return
    units = layout.num_units(manifest.num_rows, survey.record.shard_rows)
    got = ledger_digest(entry for entry in entries if entry.pass_id in manifest.passes and entry.unit < units)
    if got != manifest.ledger_digest:
        yield Problem(layout.MANIFEST, f"ledger digest {manifest.ledger_digest}", got)


def _of_bytes(survey: Survey, named: list[_Named], progress: Progress) -> Iterator[Problem]:
    """Objects are read side by side, each by ranged reads: a bad sector is then an error of one object, where touching
    a memory map of it would kill the process."""
    total = sum(one.receipt.size_bytes for one in named)
    counted = _Counter()
    workers = min(4, os.cpu_count() or 1) if survey.objects.is_local else REQUESTS_AT_ONCE
    with ThreadPoolExecutor(workers, "verify") as pool:
        futures = [pool.submit(_checked, survey, one, counted) for one in named]
        try:
            _wait(futures, lambda: progress(counted.size_bytes, total))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for future in futures:
        if (problem := future.result()) is not None:
            yield problem


class _Counter:
    """Bytes of all objects that are checked: of each object never more than it has, though formats that keep a footer
    are read there twice, and at its end all of them, though a check ends where it finds damage."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._lock = Lock()

    @contextmanager
    def of(self, size_bytes: int) -> Iterator[Callable[[int], None]]:
        """While one object is checked: to be called with the bytes of each read."""
        left = size_bytes

        def count(amount: int) -> None:
            nonlocal left
            with self._lock:
                self.size_bytes += min(amount, left)
                left -= min(amount, left)

        try:
            yield count
        finally:
            count(left)


def _wait(futures: list[Future[Problem | None]], tick: Callable[[], None]) -> None:
    waiting = {*futures}
    while waiting:
        done, waiting = wait(waiting, timeout=_TICK_S, return_when=FIRST_COMPLETED)
        tick()
        for future in done:
            future.result()  # what is no damage, as storage that does not answer, ends the inspection


def _checked(survey: Survey, one: _Named, counted: _Counter) -> Problem | None:
    """Of one object; ``counted`` grows as it is read."""
    with counted.of(one.receipt.size_bytes) as count:
        return _checked_counting(survey, one, count)


def _checked_counting(survey: Survey, one: _Named, count: Callable[[int], None]) -> Problem | None:
    def counting(objects: Objects, receipt: ObjectReceipt) -> Source:
        source = open_source(objects, receipt, is_mapped=False)

        def read(start: int, stop: int) -> object:
            count(stop - start)
            return source.read(start, stop)

        return Source(source.key, source.size_bytes, read)  # type: ignore[arg-type]

    try:
        hook = one.name.removeprefix(layout.scales_name(""))
        width = survey.passes[one.entry.pass_id].hook_points.get(hook) if one.entry else None
        if one.entry is None or width is None:
            got = counting(survey.objects, one.receipt).crc32c()
            if got == one.receipt.crc32c:
                return None
            return Problem(one.receipt.key, f"CRC-32C {one.receipt.crc32c}", f"CRC-32C {got}")
        entry = one.entry
        unit = UnitObjects(survey.objects, survey.record, entry.pass_id, entry.unit, hook, width, entry.num_rows)
        unit.check(entry.objects, one.name, counting)
    except DataError as exc:
        return Problem(one.receipt.key, "what was committed", str(exc))
    return None
