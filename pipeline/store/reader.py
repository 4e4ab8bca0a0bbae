"""Reading a store. Opening costs a few small requests; every unit is looked at when its rows are first wanted.

On first touch of a unit its ledger entry is read and the object's length compared; on first touch of a chunk its
CRC-32C is compared with the one stored beside it and with the ledger's. So a missing, short, altered or exchanged
object raises an error: never are rows made up, as generic Zarr readers do with missing chunks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property, lru_cache
from itertools import pairwise
from threading import Lock

import numpy as np
import numpy.typing as npt

from pipeline.store import layout
from pipeline.store.checksums import crc32c_hex
from pipeline.store.comoments import covariance_of, read_matrix
from pipeline.store.face import StoreFace
from pipeline.store.ledger import Ledger, in_order
from pipeline.store.log import StoreLog, planned_rows
from pipeline.store.manifests import non_finite_rows, read_manifest, require_planned
from pipeline.store.objects import Objects
from pipeline.store.rounding import Scales
from pipeline.store.rows import TokenRows
from pipeline.store.statistics import merge_all
from pipeline.store.survey import Problem
from pipeline.store.unit_objects import StoredRows, UnitObjects, UnitRows
from pipeline.store.verification import inspect
from pipeline.store.words import Floats, Words, stored_dtype
from schemas.errors import CorruptionError, HookPointError, IncompleteError, MissingError, SpecError, nearest
from schemas.fields import Dtype
from schemas.store import (
    HookStatistics,
    LedgerEntry,
    Manifest,
    NonFiniteRows,
    ObjectReceipt,
    PassRecord,
    StoreRecord,
)

_OPEN_UNITS = 128
"""Maps (and so file descriptors) that a reader keeps open for later calls."""
_UNITS_OF_TOKENS = 4
"""Whose token rows stay in memory: looking at one row after another reads the same few."""


class Store(StoreFace):
    """A store opened for reading. Safe to use from several threads; pickling it carries the URL and opens it anew."""

    def __init__(
        self,
        objects: Objects,
        record: StoreRecord,
        passes: dict[str, PassRecord],
        manifest: Manifest | None,
        num_rows: int,
    ) -> None:
        self.objects = objects
        self.record = record
        self.passes = passes
        self.manifest = manifest
        """None of a store that is not complete."""
        self.num_rows = num_rows
        """Rows of every array, T; of a store that is not complete, the rows that are planned."""
        self.hook_points: dict[str, int] = {hook: w for one in passes.values() for hook, w in one.hook_points.items()}
        """hook point -> d_model."""
        self._ledgers = {pass_: Ledger(objects, pass_, record.fingerprint) for pass_ in passes}
        self._pass_of = {hook: pass_ for pass_, one in passes.items() for hook in one.hook_points}
        self._receipts: dict[tuple[str, int], dict[str, ObjectReceipt]] = {}
        self._units: OrderedDict[tuple[str, int], UnitRows] = OrderedDict()
        self._verified: dict[tuple[str, int], set[int]] = {}
        self._lock = Lock()
        self._unit_tokens = lru_cache(maxsize=_UNITS_OF_TOKENS)(self._read_unit_tokens)

    @classmethod
    def open(cls, url: str, *, allow_partial: bool = False) -> Store:
        """``allow_partial``: a store without manifest is opened too, with the hook points of every pass; reading rows
        that are not committed raises IncompleteError. A complete store is what its manifest says, whatever is being
        added to it.

        Raises:
            MissingError: there is no store. IncompleteError: it has no manifest. MismatchError: it is of a newer
            format or not ours. CorruptionError: its documents were altered.
        """
        objects = Objects(url)
        record = layout.read_record(objects)
        try:
            manifest = read_manifest(objects, record)
        except MissingError as exc:
            if not allow_partial:
                raise IncompleteError(
                    f"the store at {objects.url} is not complete: it has no {layout.MANIFEST}. Run its collect job "
                    "again, which goes on where it stopped, or open it with allow_partial=True"
                ) from exc
            passes = layout.read_passes(objects)
            return cls(objects, record, passes, None, planned_rows(StoreLog(objects).read()))
        passes = {pass_: _complete_pass(objects, pass_) for pass_ in manifest.passes}
        return cls(objects, record, passes, manifest, manifest.num_rows)

    def __reduce__(self) -> tuple[object, tuple[str, bool]]:
        return _reopen, (self.url, self.manifest is None)

    @property
    def url(self) -> str:
        return self.objects.url

    @property
    def fingerprint(self) -> str:
        """The store's identity."""
        return self.record.fingerprint

    @property
    def table_fingerprint(self) -> str:
        """Stores of one table fingerprint are row-aligned."""
        return self.record.table_fingerprint

    @property
    def dtype(self) -> Dtype:
        """Logical type of the words."""
        return self.record.dtype

    @property
    def num_units(self) -> int:
        return layout.num_units(self.num_rows, self.record.shard_rows)

    @cached_property
    def statistics(self) -> dict[str, HookStatistics]:
        """hook point -> statistics of all (of an incomplete store: all committed) rows."""
        if self.manifest is not None:
            return self.manifest.statistics
        return {hook: self._merged(hook) for hook in self.hook_points}

    @cached_property
    def non_finite(self) -> dict[str, dict[int, NonFiniteRows]]:
        """hook point -> unit -> its rows with NaN or infinity; only hook points and units that have any."""
        if self.manifest is not None:
            return self.manifest.non_finite
        found = {
            hook: {entry.unit: rows for entry in self._entries(hook) if (rows := non_finite_rows(hook, entry))}
            for hook in self.hook_points
        }
        return {hook: units for hook, units in found.items() if units}

    def covariance(self, hook: str) -> npt.NDArray[np.float64]:
        """[D, D] float64 population covariance of all (of an incomplete store: all committed) finite rows.

        Raises:
            HookPointError. SpecError: the hook point was collected without ``statistics.covariance``. CorruptionError.
        """
        if not self.passes[self._pass_of[self._known(hook)]].covariance:
            raise SpecError(
                f"the store at {self.url} has no covariance of {hook}: it was collected without statistics.covariance"
            )
        if self.manifest is not None:
            return read_matrix(self.objects, self.manifest.covariances[hook])
        return covariance_of(self.objects, hook, self.hook_points[hook], self._entries(hook))

    def committed(self, hook: str) -> list[int]:
        """Units of the hook point that can be read, ascending; looks anew at each call of an incomplete store."""
        ledger = self._ledgers[self._pass_of[self._known(hook)]]
        return [*range(self.num_units)] if self.manifest else [unit for unit in ledger.units() if unit < self.num_units]

    def read_rows(self, hook: str, start: int, stop: int) -> Words:
        """Words [stop - start, D]. A read-only view of the file where the store is local, the codec is none and one
        chunk has all the rows; otherwise a new array. Of a lossy store they mean something with their scales only.

        Raises:
            HookPointError, SpecError (rows that do not exist), CorruptionError, IncompleteError.
        """
        return self._read(hook, start, stop).words

    def read_scales(self, hook: str, start: int, stop: int) -> Scales:
        """Scales [stop - start] of a lossy store's rows: what their words are to be multiplied by.

        Raises: as ``read_rows``; SpecError of a lossless store, too.
        """
        scales = self._read(hook, start, stop).scales
        if scales is None:
            raise SpecError(f"the rows of the store at {self.url} are {self.dtype} and have no scales: use read_rows")
        return scales

    def read_values(self, hook: str, start: int, stop: int) -> Floats:
        """float32 [stop - start, D]: words widened exactly, or multiplied by their scales in a lossy store. A view
        where ``read_rows`` gives one and the words are float32. Raises: as ``read_rows``."""
        return self._read(hook, start, stop).values(self.dtype)

    def gather(self, hook: str, rows: npt.NDArray[np.int64], out: Words | None = None) -> Words:
        """Words [n, D] of any rows in any order, repeats included; into ``out`` if given, which is returned.

        Raises: as ``read_rows``.
        """
        width = self.hook_points[self._known(hook)]
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows):
            self._require_rows(int(rows.min()), int(rows.max()) + 1)
        if out is None:
            out = np.empty((len(rows), width), dtype=stored_dtype(self.dtype))
        elif out.shape != (len(rows), width) or out.dtype != stored_dtype(self.dtype):
            raise SpecError(
                f"gather: out has {out.shape} {out.dtype}, expected {(len(rows), width)} {self.dtype} words"
            )
        self._gather(hook, rows, out, None)
        return out

    def gather_values(self, hook: str, rows: npt.NDArray[np.int64]) -> Floats:
        """float32 [n, D] of any rows in any order, as ``read_values`` gives them. Raises: as ``read_rows``."""
        rows = np.asarray(rows, dtype=np.int64)
        scales = np.empty((len(rows), 1), dtype=np.float32) if self.record.lossy else None
        width = self.hook_points[self._known(hook)]
        if len(rows):
            self._require_rows(int(rows.min()), int(rows.max()) + 1)
        words = np.empty((len(rows), width), dtype=stored_dtype(self.dtype))
        self._gather(hook, rows, words, scales)
        return StoredRows(words, None if scales is None else scales[:, 0]).values(self.dtype)

    def tokens(self, start: int = 0, stop: int | None = None) -> TokenRows:
        """Token rows [start, stop); the whole store by default. Raises as ``read_rows``."""
        stop = self.num_rows if stop is None else stop
        self._require_rows(start, stop)
        spans = self._spans(start, stop)
        units = in_order(self.objects, self._unit_tokens, [unit for unit, _, _ in spans])
        return TokenRows.concat(rows.slice(a, b) for rows, (_, a, b) in zip(units, spans, strict=True))

    def verify(self, deep: bool) -> list[Problem]:
        """What is wrong with the store; nothing is raised. ``deep``: check every byte, not only every length."""
        return inspect(self.objects, is_deep=deep).problems

    def entry(self, pass_id: str, unit: int) -> LedgerEntry:
        """The ledger's entry of a unit. Raises IncompleteError, CorruptionError."""
        entry = self._ledgers[pass_id].read(unit)
        if entry is None:
            key = layout.ledger_key(pass_id, unit)
            if self.manifest is None:
                raise IncompleteError(f"unit {unit} of the store at {self.url} is not committed yet: no {key}")
            raise CorruptionError(f"{self.url}/{key}: expected a ledger entry, got no object")
        require_planned(entry, self.num_rows, self.record.shard_rows, self.url)
        return entry

    def release(self) -> None:
        """Let go of the files that are kept open for later calls; rows that were given out stay as they are."""
        with self._lock:
            self._units.clear()

    def _read(self, hook: str, start: int, stop: int) -> StoredRows:
        """Rows [start, stop) as they are stored; views where one chunk of a mapped file has them."""
        width = self.hook_points[self._known(hook)]
        self._require_rows(start, stop)
        spans = self._spans(start, stop)
        parts = [*in_order(self.objects, lambda span: self._unit(hook, span[0]).read(span[1], span[2]), spans)]
        if len(parts) == 1:
            return parts[0]
        words = np.concatenate([np.empty((0, width), dtype=stored_dtype(self.dtype)), *(part.words for part in parts)])
        scales = [part.scales for part in parts if part.scales is not None]
        return StoredRows(words, np.concatenate([np.empty(0, np.float32), *scales]) if self.record.lossy else None)

    def _gather(self, hook: str, rows: npt.NDArray[np.int64], words: Words, scales: Words | None) -> None:
        """Fill words [n, D], and scales [n, 1] if given, unit by unit."""
        order = np.argsort(rows // self.record.shard_rows, kind="stable")
        units = rows[order] // self.record.shard_rows
        starts = [0, *(np.flatnonzero(np.diff(units)) + 1).tolist(), len(rows)]
        jobs = [(int(units[a]), order[a:b]) for a, b in pairwise(starts) if b > a]

        def fill(unit: int, places: npt.NDArray[np.int64]) -> None:
            wanted, held = rows[places] - unit * self.record.shard_rows, self._unit(hook, unit)
            held.words.gather(wanted, words, places)
            if scales is not None and held.scales is not None:
                held.scales.gather(wanted, scales, places)

        for _ in in_order(self.objects, lambda job: fill(*job), jobs):
            pass

    def _merged(self, hook: str) -> HookStatistics:
        return merge_all((entry.statistics[hook] for entry in self._entries(hook)), width=self.hook_points[hook])

    def _entries(self, hook: str) -> Iterator[LedgerEntry]:
        return self._ledgers[self._pass_of[hook]].entries(self.committed(hook))

    def _known(self, hook: str) -> str:
        if hook not in self.hook_points:
            has = ", ".join(sorted(self.hook_points)) or "none"
            raise HookPointError(
                f"the store at {self.url} has no hook point {hook!r}{nearest(hook, self.hook_points)} It has: {has}"
            )
        return hook

    def _require_rows(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.num_rows:
            raise SpecError(
                f"rows [{start}, {stop}) are not within the {self.num_rows} rows of the store at {self.url}"
            )

    def _spans(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(unit, first, end) with rows counted from the unit's first, that cover rows [start, stop)."""
        size = self.record.shard_rows
        units = range(start // size, layout.num_units(stop, size)) if stop > start else range(0)
        return [(unit, max(start - unit * size, 0), min(stop - unit * size, size)) for unit in units]

    def _unit_receipts(self, pass_id: str, unit: int) -> dict[str, ObjectReceipt]:
        # Only receipts are kept: an entry's statistics are many times as large.
        key = (pass_id, unit)
        if key not in self._receipts:
            self._receipts[key] = self.entry(pass_id, unit).objects
        return self._receipts[key]

    def _unit(self, hook: str, unit: int) -> UnitRows:
        """The opened objects of a unit, their lengths checked; the least recently used are closed again."""
        with self._lock:
            rows = self._units.get((hook, unit))
            if rows is not None:
                self._units.move_to_end((hook, unit))
                return rows
        pass_id = self._pass_of[hook]
        receipts = self._unit_receipts(pass_id, unit)
        start, stop = layout.unit_rows(unit, self.num_rows, self.record.shard_rows)
        width = self.hook_points[hook]
        one = UnitObjects(self.objects, self.record, pass_id, unit, hook, width, stop - start)
        rows = one.open(receipts, self._verified.setdefault((hook, unit), set()))
        with self._lock:
            self._units[hook, unit] = rows
            while len(self._units) > _OPEN_UNITS:
                self._units.popitem(last=False)
        return rows

    def _read_unit_tokens(self, unit: int) -> TokenRows:
        receipt = self._tokens_receipt(unit)
        where = f"{self.url}/{receipt.key}"
        try:
            data = self.objects.read(receipt.key)
        except MissingError as exc:
            raise CorruptionError(f"{where}: expected {receipt.size_bytes} bytes, got no object") from exc
        for what, expected, got in (
            ("bytes", receipt.size_bytes, len(data)),
            ("CRC-32C", receipt.crc32c, crc32c_hex(data)),
        ):
            if expected != got:
                raise CorruptionError(f"{where}: {what}: expected {expected}, got {got}")
        rows = TokenRows.from_parquet(data, where=where)
        start, stop = layout.unit_rows(unit, self.num_rows, self.record.shard_rows)
        if not np.array_equal(rows.row, np.arange(start, stop)):
            raise CorruptionError(f"{where}: expected the rows [{start}, {stop}), got {len(rows)} others")
        return rows

    def _tokens_receipt(self, unit: int) -> ObjectReceipt:
        """From whichever pass has the unit: they all name the same object."""
        for last, pass_ in enumerate(self.passes, start=1):
            try:
                return self._unit_receipts(pass_, unit)[layout.TOKENS]
            except IncompleteError:
                if last == len(self.passes):
                    raise
        raise IncompleteError(f"the store at {self.url} has no pass yet")


def _reopen(url: str, allow_partial: bool) -> Store:
    return Store.open(url, allow_partial=allow_partial)


def _complete_pass(objects: Objects, pass_: str) -> PassRecord:
    try:
        return layout.read_pass(objects, pass_)
    except MissingError as exc:
        key = layout.pass_key(pass_)
        raise CorruptionError(f"{objects.url}/{key}: expected the record of a complete pass, got no object") from exc
