"""Looking for damage: every document, every length, and with ``deep`` every byte, against the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pipeline.store import layout
from pipeline.store.checksums import crc32c_hex
from pipeline.store.ledger import Ledger, in_order, ledger_digest
from pipeline.store.manifests import require_planned
from pipeline.store.objects import Objects
from pipeline.store.unit_objects import UnitObjects
from schemas.errors import HeadworksError
from schemas.store import LedgerEntry, Manifest, ObjectReceipt, PassRecord, StoreRecord

Result = TypeVar("Result")


@dataclass(frozen=True)
class Problem:
    """One thing that is not as committed."""

    key: str
    """Object below the store's root."""
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.key}: expected {self.expected}, got {self.got}"


def problems(
    objects: Objects,
    record: StoreRecord,
    passes: dict[str, PassRecord],
    manifest: Manifest | None,
    num_rows: int,
    *,
    deep: bool,
) -> list[Problem]:
    """All that can be found, by pass and unit; an empty list of a sound store."""
    found: list[Problem] = []
    sizes = objects.sizes()
    entries: list[LedgerEntry] = []
    for pass_, pass_record in passes.items():
        found += _of_arrays(objects, record, pass_, pass_record, num_rows)
        for entry in _entries(objects, record, pass_, manifest, num_rows, found):
            entries.append(entry.model_copy(update={"statistics": {}}))
            found += _of_entry(entry, record, pass_record)
    receipts = {receipt.key: (entry, name) for entry in entries for name, receipt in entry.objects.items()}
    found += [*_of_lengths([entry.objects[name] for entry, name in receipts.values()], sizes)]
    if manifest is not None and ledger_digest(entries) != manifest.ledger_digest:
        found.append(Problem(layout.MANIFEST, f"ledger digest {manifest.ledger_digest}", ledger_digest(entries)))
    if deep:
        widths = {hook: width for one in passes.values() for hook, width in one.hook_points.items()}
        whole = [one for key, one in receipts.items() if sizes.get(key) == one[0].objects[one[1]].size_bytes]
        for problem in in_order(objects, lambda one: _of_bytes(objects, record, widths, *one), whole):
            found += [problem] if problem else []
    return found


def _entries(
    objects: Objects, record: StoreRecord, pass_: str, manifest: Manifest | None, num_rows: int, found: list[Problem]
) -> Iterator[LedgerEntry]:
    """The entries that can be read; what cannot goes to ``found``."""
    ledger = Ledger(objects, pass_, record.fingerprint)
    planned = range(layout.num_units(num_rows, record.shard_rows))
    units = [*planned] if manifest else [unit for unit in ledger.units() if unit in planned]
    for unit in units:
        key = layout.ledger_key(pass_, unit)
        entry = _tried(partial(ledger.read, unit), key, found)
        if entry is None:
            if not any(problem.key == key for problem in found[-1:]):
                found.append(Problem(key, "a ledger entry", "no object"))
            continue
        _tried(partial(require_planned, entry, num_rows, record.shard_rows, objects.url), key, found)
        yield entry


def _tried(action: Callable[[], Result], key: str, found: list[Problem]) -> Result | None:
    try:
        return action()
    except HeadworksError as exc:
        found.append(Problem(key, "what was committed", str(exc)))
        return None


def _of_arrays(
    objects: Objects, record: StoreRecord, pass_: str, pass_record: PassRecord, num_rows: int
) -> Iterator[Problem]:
    """Metadata that other programs rely on; the number of rows may be greater while a store grows."""
    for hook, width in pass_record.hook_points.items():
        key = layout.array_key(record, hook)
        failures: list[Problem] = []
        facts = _tried(partial(layout.read_array, objects, record, hook), key, failures)
        yield from failures
        if facts is None:
            if not failures:
                yield Problem(key, "metadata of an array", "no object")
            continue
        rows = max(num_rows, facts["shape"][0])
        for place, expected in layout.array_documents(record, hook, width, rows, pass_).items():
            failures = []
            got = _tried(partial(layout.read_document, objects, place), place, failures)
            yield from failures
            if got != expected and not failures:
                yield Problem(place, str(expected), "no object" if got is None else str(got))


def _of_entry(entry: LedgerEntry, record: StoreRecord, pass_record: PassRecord) -> Iterator[Problem]:
    """The objects that an entry must name, under the keys that they must have."""
    keys = {layout.TOKENS: layout.tokens_key(entry.unit)}
    for hook in pass_record.hook_points:
        keys |= layout.unit_keys(record, hook, entry.unit)
    got = {name: receipt.key for name, receipt in entry.objects.items()}
    if got != keys:
        yield Problem(layout.ledger_key(entry.pass_id, entry.unit), f"objects {keys}", str(got))


def _of_lengths(receipts: list[ObjectReceipt], sizes: dict[str, int]) -> Iterator[Problem]:
    for receipt in receipts:
        got = sizes.get(receipt.key)
        if got != receipt.size_bytes:
            yield Problem(receipt.key, f"{receipt.size_bytes} bytes", "no object" if got is None else f"{got} bytes")


def _of_bytes(
    objects: Objects, record: StoreRecord, widths: dict[str, int], entry: LedgerEntry, name: str
) -> Problem | None:
    """Of one object that the entry names; ``widths``: hook point -> D."""
    receipt = entry.objects[name]
    hook = name.removeprefix(layout.scales_name(""))
    if hook not in widths:
        got = crc32c_hex(objects.read(receipt.key))
        return None if got == receipt.crc32c else Problem(receipt.key, f"CRC-32C {receipt.crc32c}", f"CRC-32C {got}")
    unit = UnitObjects(objects, record, entry.pass_id, entry.unit, hook, widths[hook], entry.num_rows)
    found: list[Problem] = []
    _tried(partial(unit.check, entry.objects, name), receipt.key, found)
    return found[0] if found else None
