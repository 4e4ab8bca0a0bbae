"""The manifest: what a complete store holds, computed from the ledger alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.store.documents import parse, sealed, to_bytes, unsealed
from pipeline.store.layout import MANIFEST, num_units, read_passes, require_known_format, unit_rows
from pipeline.store.ledger import Ledger, ledger_digest
from pipeline.store.objects import Objects
from pipeline.store.statistics import merge, nothing
from schemas.errors import CorruptionError, IncompleteError, MismatchError, MissingError
from schemas.store import HookStatistics, LedgerEntry, Manifest, PassRecord, StoreRecord


def read_manifest(objects: Objects, record: StoreRecord) -> Manifest:
    """Raises MissingError (the store is not complete), CorruptionError (altered, or another store's)."""
    where = f"{objects.url}/{MANIFEST}"
    facts = parse(objects.read(MANIFEST), where)
    require_known_format(facts, where)
    manifest = unsealed(facts, Manifest, where)
    if manifest.fingerprint != record.fingerprint:
        raise CorruptionError(
            f"{where}: expected the manifest of the store {record.fingerprint}, got one of {manifest.fingerprint}"
        )
    return manifest


@dataclass
class _Totals:
    """What is added up while the ledger streams by."""

    sizes: dict[str, int] = field(default_factory=dict)
    statistics: dict[str, HookStatistics] = field(default_factory=dict)

    def add(self, entry: LedgerEntry, record: PassRecord) -> None:
        self.sizes.update({receipt.key: receipt.size_bytes for receipt in entry.objects.values()})
        for hook, width in record.hook_points.items():
            self.statistics[hook] = merge(self.statistics.get(hook, nothing(width)), entry.statistics[hook])


def write_manifest(objects: Objects, record: StoreRecord, num_rows: int, *, required: str) -> Manifest:
    """Put the manifest of every pass that is complete over ``num_rows`` rows; writes nothing if it is there already.

    Raises:
        IncompleteError: the pass ``required``, or one that the store had complete before, lacks units.
        CorruptionError: an object that the ledger names is not there or of another length.
    """
    before = _before(objects, record)
    while True:
        passes = _complete_passes(objects, record, num_rows, [required, *(before.passes if before else [])])
        manifest = _computed(objects, record, num_rows, passes)
        if manifest != before:
            objects.write(MANIFEST, to_bytes(sealed(manifest)))
        # Of two jobs that finish at once, the one that read an older ledger may write last: look again after writing.
        again = _complete_passes(objects, record, num_rows, [required])
        before = read_manifest(objects, record)
        if [*again] == before.passes:
            return before


def _before(objects: Objects, record: StoreRecord) -> Manifest | None:
    try:
        return read_manifest(objects, record)
    except MissingError:
        return None


def _complete_passes(
    objects: Objects, record: StoreRecord, num_rows: int, required: list[str]
) -> dict[str, PassRecord]:
    """The complete ones, by id; one listing for each pass."""
    wanted = range(num_units(num_rows, record.shard_rows))
    complete: dict[str, PassRecord] = {}
    for pass_, pass_record in sorted(read_passes(objects).items()):
        lacking = sorted({*wanted} - {*Ledger(objects, pass_, record.fingerprint).units()})
        if not lacking:
            complete[pass_] = pass_record
        elif pass_ in required:
            named = ", ".join(map(str, lacking[:10])) + (", ..." if len(lacking) > 10 else "")
            raise IncompleteError(
                f"the store at {objects.url} lacks {len(lacking)} of {len(wanted)} units of the pass {pass_} "
                f"({', '.join(sorted(pass_record.hook_points))}): {named}. Run the job that collects them again."
            )
    return complete


def _computed(objects: Objects, record: StoreRecord, num_rows: int, passes: dict[str, PassRecord]) -> Manifest:
    totals = _Totals()
    digest = ledger_digest(_added(objects, record, num_rows, passes, totals))
    _require_present(objects, totals.sizes)
    return Manifest(
        fingerprint=record.fingerprint,
        num_rows=num_rows,
        num_units=num_units(num_rows, record.shard_rows),
        passes=[*passes],
        hook_points={hook: width for one in passes.values() for hook, width in one.hook_points.items()},
        size_bytes=sum(totals.sizes.values()),
        ledger_digest=digest,
        statistics=totals.statistics,
    )


def _added(
    objects: Objects, record: StoreRecord, num_rows: int, passes: dict[str, PassRecord], totals: _Totals
) -> Iterator[LedgerEntry]:
    """Every entry by pass and unit, added to ``totals`` as it goes by."""
    for pass_, pass_record in passes.items():
        units = range(num_units(num_rows, record.shard_rows))
        for entry in Ledger(objects, pass_, record.fingerprint).entries(units):
            require_planned(entry, num_rows, record.shard_rows, objects.url)
            totals.add(entry, pass_record)
            yield entry


def require_planned(entry: LedgerEntry, num_rows: int, shard_rows: int, url: str) -> None:
    """Refuse a last unit that was committed when the store was planned with another number of rows."""
    start, stop = unit_rows(entry.unit, num_rows, shard_rows)
    if (entry.start_row, entry.num_rows) != (start, stop - start):
        raise MismatchError(
            f"unit {entry.unit} of the store at {url} was committed with rows [{entry.start_row}, "
            f"{entry.start_row + entry.num_rows}), this plan has [{start}, {stop}). Choose max_tokens as in the job "
            "that wrote it, or another output."
        )


def _require_present(objects: Objects, sizes: dict[str, int]) -> None:
    found = objects.sizes()
    for key, size_bytes in sizes.items():
        if found.get(key) != size_bytes:
            raise CorruptionError(
                f"{objects.url}/{key}: expected {size_bytes} bytes, got {found.get(key, 'no object')}"
            )
