"""The manifest: what a complete store holds, computed from the ledger alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.store.comoments import covariance_key, put_covariance
from pipeline.store.documents import parse, sealed, to_bytes, unsealed
from pipeline.store.joining import set_rows
from pipeline.store.layout import MANIFEST, num_units, require_known_format, unit_rows
from pipeline.store.ledger import Ledger, ledger_digest
from pipeline.store.log import Event, StoreLog, completion, opened_passes
from pipeline.store.objects import Objects
from pipeline.store.statistics import merge, nothing
from schemas.errors import CorruptionError, IncompleteError, MismatchError, MissingError
from schemas.store import (
    HookStatistics,
    LedgerEntry,
    Manifest,
    NonFiniteRows,
    ObjectReceipt,
    PassRecord,
    RowsComplete,
    StoreRecord,
)


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
    non_finite: dict[str, dict[int, NonFiniteRows]] = field(default_factory=dict)

    def add(self, entry: LedgerEntry, record: PassRecord) -> None:
        self.sizes.update({receipt.key: receipt.size_bytes for receipt in entry.objects.values()})
        for hook, width in record.hook_points.items():
            self.statistics[hook] = merge(self.statistics.get(hook, nothing(width)), entry.statistics[hook])
            if found := non_finite_rows(hook, entry):
                self.non_finite.setdefault(hook, {})[entry.unit] = found


def non_finite_rows(hook: str, entry: LedgerEntry) -> NonFiniteRows | None:
    """What the unit has of NaN and infinity at the hook point; None of a finite one."""
    statistics = entry.statistics[hook]
    if not statistics.num_nan + statistics.num_inf:
        return None
    return NonFiniteRows(num_nan=statistics.num_nan, num_inf=statistics.num_inf)


def write_manifest(objects: Objects, record: StoreRecord, num_rows: int, *, required: str) -> Manifest:
    """Show what is complete: the pass ``required`` over ``num_rows`` rows, all passes that the store showed before, and
    others that happen to be complete. Fewer rows than the store shows are shown with the store's own number.

    What is shown is decided on the store's log; the manifest is computed from that and the ledger, so that of jobs
    which finish at once the last to write names what all of them completed. Nothing is written that is there already.

    Raises:
        IncompleteError: the pass ``required``, or one that the store shows, lacks units; what is complete without them
        is shown nevertheless. CorruptionError: an object that the ledger names is not there or of another length.
    """
    job = _Completion(objects, record, num_rows, required)
    log = StoreLog(objects)
    log.append(job.decide)
    manifest = _written(job, log)
    if manifest.num_rows < num_rows:
        raise IncompleteError(
            f"{num_rows} rows of the pass {required} are in the store at {objects.url}, which goes on to show "
            f"{manifest.num_rows} rows:\n{job.obstacle}\nA store's hook points have their rows in common."
        )
    return manifest


def restored_manifest(objects: Objects, record: StoreRecord, before: Manifest | None) -> Manifest | None:
    """The manifest as log and ledger have it, not written; None of a store that was never complete. Covariances are
    those of ``before``, or made where it has none.

    Raises:
        CorruptionError: log, ledger or the length of an object is not what was committed.
    """
    events = StoreLog(objects).read()
    shown, opened = completion(events), opened_passes(events)
    if shown is None:
        return None
    return _computed(objects, record, shown.num_rows, {pass_: opened[pass_] for pass_ in shown.passes}, before)


@dataclass
class _Completion:
    """What a finishing job makes of the log's events."""

    objects: Objects
    record: StoreRecord
    num_rows: int
    required: str
    obstacle: str = ""
    """Why the store cannot show ``num_rows`` rows."""
    manifests: dict[RowsComplete, Manifest] = field(default_factory=dict)
    """Computed already; the ledger of what is complete does not change while a job finishes."""

    def decide(self, events: Sequence[Event]) -> RowsComplete | None:
        """The next event, or None where the last one says it all.

        Raises:
            IncompleteError: not even at the number of rows that the store shows can the pass be added.
        """
        opened, shown = opened_passes(events), completion(events)
        needed = [self.required, *(shown.passes if shown else [])]
        # As many rows as this job collected, else as the store has: never fewer than it shows.
        choices = sorted({self.num_rows, shown.num_rows} if shown else {self.num_rows}, reverse=True)
        committed = {pass_: {*Ledger(self.objects, pass_, self.record.fingerprint).units()} for pass_ in opened}
        for num_rows in choices:
            if shown and num_rows < shown.num_rows:
                break
            wanted = {*range(num_units(num_rows, self.record.shard_rows))}
            lacking = {pass_: sorted(wanted - units) for pass_, units in committed.items()}
            behind = [pass_ for pass_ in needed if lacking[pass_]]
            if not behind:
                passes = sorted(pass_ for pass_, units in lacking.items() if not units)
                event = RowsComplete(num_rows=num_rows, passes=tuple(passes))
                # Before anything is written: an object that has gone is found here.
                self.manifest(event, opened)
                return None if event == shown else event
            self.obstacle = "\n".join(self._told(opened[pass_], pass_, lacking[pass_], num_rows) for pass_ in behind)
        raise IncompleteError(f"{self.obstacle}\nRun the job that collects them again.")

    def manifest(self, event: RowsComplete, opened: Mapping[str, PassRecord]) -> Manifest:
        """What the store says of itself when it shows this."""
        if event not in self.manifests:
            passes = {pass_: opened[pass_] for pass_ in event.passes}
            before = _before(self.objects, self.record)
            self.manifests[event] = _computed(self.objects, self.record, event.num_rows, passes, before)
        return self.manifests[event]

    def _told(self, one: PassRecord, pass_: str, lacking: list[int], num_rows: int) -> str:
        named = ", ".join(map(str, lacking[:10])) + (", ..." if len(lacking) > 10 else "")
        return (
            f"the store at {self.objects.url} lacks {len(lacking)} of {num_units(num_rows, self.record.shard_rows)} "
            f"units of the pass {pass_} ({', '.join(sorted(one.hook_points))}): {named}."
        )


def _written(job: _Completion, log: StoreLog) -> Manifest:
    """The manifest of the log's last completion, on the storage."""
    while True:
        events = log.read()
        shown, opened = completion(events), opened_passes(events)
        assert shown is not None, "a job finishes only after a completion was logged"
        manifest = job.manifest(shown, opened)
        # Shapes before the manifest: while it is not there yet, more rows than it names do no harm.
        set_rows(job.objects, job.record, {pass_: opened[pass_] for pass_ in shown.passes}, shown.num_rows)
        if _before(job.objects, job.record) != manifest:
            job.objects.write(MANIFEST, to_bytes(sealed(manifest)))
        # A job that was slow to write may have written over a later one's: the log says which is the later.
        if completion(log.read()) == shown:
            return manifest


def _before(objects: Objects, record: StoreRecord) -> Manifest | None:
    try:
        return read_manifest(objects, record)
    except MissingError:
        return None


def _computed(
    objects: Objects, record: StoreRecord, num_rows: int, passes: dict[str, PassRecord], before: Manifest | None
) -> Manifest:
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
        non_finite=totals.non_finite,
        covariances=_covariances(objects, record, num_rows, passes, before),
    )


def _covariances(
    objects: Objects, record: StoreRecord, num_rows: int, passes: dict[str, PassRecord], before: Manifest | None
) -> dict[str, ObjectReceipt]:
    """Those that the manifest before has of as many rows are kept: units never change."""
    found: dict[str, ObjectReceipt] = {}
    for pass_, one in passes.items():
        for hook in one.hook_points if one.covariance else {}:
            known = before.covariances.get(hook) if before else None
            if known is None or known.key != covariance_key(hook, num_rows):
                units = range(num_units(num_rows, record.shard_rows))
                entries = Ledger(objects, pass_, record.fingerprint).entries(units)
                known = put_covariance(objects, hook, num_rows, one.hook_points[hook], entries)
            found[hook] = known
    return found


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
