"""The ledger: one document for each committed unit of a pass. A unit exists when its entry does."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipeline.store.documents import parse, sealed, to_bytes, unsealed
from pipeline.store.layout import ledger_folder, ledger_key, require_known_format, unit_of_ledger_key
from pipeline.store.objects import Objects
from schemas.errors import CorruptionError, MissingError
from schemas.fingerprint import canonical_json
from schemas.store import LedgerEntry, ObjectReceipt

Item = TypeVar("Item")
Result = TypeVar("Result")

REQUESTS_AT_ONCE = 16
"""Requests under way to a remote store; local folders are read one by one."""

_log = logging.getLogger(__name__)


class Ledger:
    """Entries of one pass."""

    def __init__(self, objects: Objects, pass_id: str, store_fingerprint: str) -> None:
        self.objects = objects
        self.pass_id = pass_id
        self.store_fingerprint = store_fingerprint

    def units(self) -> list[int]:
        """Committed units in ascending order, by one listing."""
        return sorted(unit_of_ledger_key(key) for key in self.objects.list(ledger_folder(self.pass_id)))

    def read(self, unit: int) -> LedgerEntry | None:
        """The unit's entry, or None while it is not committed.

        Raises:
            CorruptionError: altered, or of another unit, pass or store.
        """
        key = ledger_key(self.pass_id, unit)
        where = f"{self.objects.url}/{key}"
        try:
            facts = parse(self.objects.read(key), where)
        except MissingError:
            return None
        require_known_format(facts, where)
        entry = unsealed(facts, LedgerEntry, where)
        expected = (self.store_fingerprint, self.pass_id, unit)
        got = (entry.store_fingerprint, entry.pass_id, entry.unit)
        if got != expected:
            raise CorruptionError(f"{where}: expected (store, pass, unit) {expected}, got {got}")
        return entry

    def entries(self, units: Sequence[int]) -> Iterator[LedgerEntry]:
        """The entries of committed units, in the order asked for. Raises CorruptionError where one has vanished."""
        for unit, entry in zip(units, in_order(self.objects, self.read, units), strict=True):
            if entry is None:
                key = ledger_key(self.pass_id, unit)
                raise CorruptionError(f"{self.objects.url}/{key}: expected a ledger entry, got nothing")
            yield entry

    def commit(self, entry: LedgerEntry) -> LedgerEntry:
        """Write the entry unless the unit has one; the entry that counts, which is the first."""
        if self.objects.create(ledger_key(self.pass_id, entry.unit), to_bytes(sealed(entry))):
            return entry
        winner = self.read(entry.unit)
        if winner is None:
            raise CorruptionError(f"{self.objects.url}: the ledger entry of unit {entry.unit} came and went")
        warn_if_different(self.objects.url, winner, entry.objects, attempt=entry.attempt, worker=entry.worker)
        return winner


def warn_if_different(
    url: str, winner: LedgerEntry, ours: dict[str, ObjectReceipt], *, attempt: int, worker: str
) -> None:
    """Log an attempt that computed other bytes than the committed ones, as other hardware may; the first stays true."""
    for name, receipt in ours.items():
        committed = winner.objects.get(name)
        if committed is None or committed.crc32c != receipt.crc32c:
            _log.warning(
                "store.unit_differs store=%s pass=%s unit=%d object=%s committed_crc32c=%s crc32c=%s "
                "committed_by=%s worker=%s attempt=%d: the committed bytes stay",
                url, winner.pass_id, winner.unit, name, committed and committed.crc32c, receipt.crc32c,
                winner.worker, worker, attempt,
            )  # fmt: skip


def ledger_digest(entries: Iterable[LedgerEntry]) -> str:
    """SHA-256 over one line of canonical JSON for each entry, by pass id and then unit:
    ``[pass, unit, [[key, size_bytes, crc32c], ...]]`` with objects sorted by key."""
    digest = hashlib.sha256()
    for entry in entries:
        objects = sorted([receipt.key, receipt.size_bytes, receipt.crc32c] for receipt in entry.objects.values())
        digest.update(canonical_json([entry.pass_id, entry.unit, objects]) + b"\n")
    return digest.hexdigest()


def in_order(objects: Objects, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """``map`` that keeps several requests to a remote store under way, at most a few results ahead."""
    if objects.is_local or len(items) < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for start in range(0, len(items), 4 * REQUESTS_AT_ONCE):
            yield from pool.map(function, items[start : start + 4 * REQUESTS_AT_ONCE])
