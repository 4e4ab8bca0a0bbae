"""Looking for damage: every document, every length, and with ``deep`` every byte, against the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pipeline.store import layout
from pipeline.store.checksums import crc32c_hex, crc32c_of_chunks
from pipeline.store.ledger import Ledger, in_order, ledger_digest
from pipeline.store.manifests import require_planned
from pipeline.store.objects import Objects
from pipeline.store.sources import open_shard
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
            found += _of_entry(entry, pass_record)
    receipts = {receipt.key: (name, receipt) for entry in entries for name, receipt in entry.objects.items()}
    found += [*_of_lengths([receipt for _, receipt in receipts.values()], sizes)]
    if manifest is not None and ledger_digest(entries) != manifest.ledger_digest:
        found.append(Problem(layout.MANIFEST, f"ledger digest {manifest.ledger_digest}", ledger_digest(entries)))
    if deep:
        widths = {hook: width for one in passes.values() for hook, width in one.hook_points.items()}
        whole = [one for key, one in receipts.items() if sizes.get(key) == one[1].size_bytes]
        for problem in in_order(objects, lambda one: _of_bytes(objects, record, widths.get(one[0]), one[1]), whole):
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
    """Zarr metadata that other programs rely on; the number of rows may be greater while a store grows."""
    for hook, width in pass_record.hook_points.items():
        key = layout.array_key(hook)
        failures: list[Problem] = []
        facts = _tried(partial(layout.read_array, objects, hook), key, failures)
        yield from failures
        if facts is None:
            if not failures:
                yield Problem(key, "metadata of an array", "no object")
            continue
        rows = max(num_rows, facts["shape"][0])
        expected = layout.array_metadata(record, hook, width, rows, pass_)
        if facts != expected:
            yield Problem(key, str(expected), str(facts))


def _of_entry(entry: LedgerEntry, pass_record: PassRecord) -> Iterator[Problem]:
    """The objects that an entry must name, under the keys that they must have."""
    keys = {hook: layout.shard_key(hook, entry.unit) for hook in pass_record.hook_points}
    keys[layout.TOKENS] = layout.tokens_key(entry.unit)
    got = {name: receipt.key for name, receipt in entry.objects.items()}
    if got != keys:
        yield Problem(layout.ledger_key(entry.pass_id, entry.unit), f"objects {keys}", str(got))


def _of_lengths(receipts: list[ObjectReceipt], sizes: dict[str, int]) -> Iterator[Problem]:
    for receipt in receipts:
        got = sizes.get(receipt.key)
        if got != receipt.size_bytes:
            yield Problem(receipt.key, f"{receipt.size_bytes} bytes", "no object" if got is None else f"{got} bytes")


def _of_bytes(objects: Objects, record: StoreRecord, width: int | None, receipt: ObjectReceipt) -> Problem | None:
    """``width`` of a shard, None of token rows."""
    if width is None:
        got = crc32c_hex(objects.read(receipt.key))
    else:
        # The ledger's list of checksums says how many chunks there are, and a sound entry's own seal vouches for it.
        num_rows = len(receipt.chunk_crc32c) * record.chunk_rows
        found: list[Problem] = []
        shard = open_shard(objects, receipt, layout.geometry(record, width), num_rows, set())
        _tried(shard.check_all, receipt.key, found)
        if found:
            return found[0]
        got = crc32c_of_chunks(receipt.chunk_crc32c)
    return None if got == receipt.crc32c else Problem(receipt.key, f"CRC-32C {receipt.crc32c}", f"CRC-32C {got}")
