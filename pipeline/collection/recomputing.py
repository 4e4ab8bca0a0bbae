"""Collecting units of a store again, beside it: nothing of the store is touched until somebody compares.

A unit is computed by the code that collected it, and written by the same writer into ``memory://``, where objects of
the store that are known to be sound are laid first. The writer takes those over, so what comes out is a consistent
unit: its objects, and the ledger entry that would name them.
"""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from pipeline.collection.inputs import open_forward, open_inputs
from pipeline.collection.unit import RowSource, UnitCollector
from pipeline.models.forward import needs_head
from pipeline.models.load import load_model
from pipeline.store import layout
from pipeline.store.objects import Objects
from pipeline.store.unit_objects import UnitObjects
from pipeline.store.writer import StoreWriter
from schemas.collect import CollectSpec
from schemas.errors import MismatchError
from schemas.fingerprint import require_equal
from schemas.store import LedgerEntry, PassRecord, StoreRecord

_LOW_BITS = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Relative difference of a row that other hardware, kernels or numbers of threads can make, by the coarser of compute
and stored precision: some hundred roundings of the layers below. Another row, or another model, differs by about 1."""


@dataclass(frozen=True)
class Staged:
    """A unit as it would be committed, in memory."""

    objects: Objects
    entry: LedgerEntry


@dataclass(frozen=True)
class Difference:
    """One hook point of one unit: what is stored against what is computed now."""

    unit: int
    hook_point: str
    num_rows: int
    num_equal: int
    """Rows of which every word is equal."""
    greatest: float
    """Greatest relative difference of a row: norm of the difference over norm of the stored row."""
    tolerance: float
    """What other hardware may make of it."""

    @property
    def is_equal(self) -> bool:
        return self.num_equal == self.num_rows

    @property
    def is_low_bits(self) -> bool:
        """Different at most as other hardware would have it."""
        return self.greatest <= self.tolerance

    def __str__(self) -> str:
        if self.is_equal:
            return f"unit {self.unit}, {self.hook_point}: all {self.num_rows} rows are equal"
        kind = "low bits differ" if self.is_low_bits else "OTHER NUMBERS"
        return (
            f"unit {self.unit}, {self.hook_point}: {kind}: {self.num_equal} of {self.num_rows} rows are equal, the "
            f"greatest relative difference of a row is {self.greatest:.2g} (low bits: up to {self.tolerance:.2g})"
        )


@dataclass(frozen=True)
class Recomputer:
    """One pass of one store, with its model loaded."""

    collector: UnitCollector

    @classmethod
    def open(
        cls, record: StoreRecord, pass_record: PassRecord, rows: RowSource, *, num_rows: int, spec: CollectSpec
    ) -> Recomputer:
        """Load the model as ``spec`` says and hold it against the store's.

        Raises:
            MismatchError: another model. ModelError, MissingError, HookPointError: it cannot be loaded.
        """
        # As many threads as a worker of the job had: another number can change low bits.
        torch.set_num_threads(max(1, int(spec.workers.cpus_per_worker)))
        hook_points = tuple(pass_record.hook_points)
        loaded = load_model(spec.model, with_head=needs_head(hook_points))
        remedy = "Give the model that made the store (--model PATH)."
        require_equal(record.identity["model"], loaded.identity, where="the model", remedy=remedy)
        forward = open_forward(loaded, spec, hook_points)
        writer = StoreWriter(Objects("memory://none"), record, pass_record, layout.pass_id(pass_record), num_rows)
        worker = f"repair@{socket.gethostname()}"
        return cls(UnitCollector(forward, rows, writer, worker, open_inputs(spec, rows)))

    @contextmanager
    def staged(self, unit: int, sound: Iterable[tuple[str, bytes]] = ()) -> Iterator[Staged]:
        """The unit computed now; ``sound``: (key, bytes) of objects of the store that are to stay as they are."""
        objects = Objects(f"memory://headworks-{secrets.token_hex(8)}")
        writer = self.collector.writer
        beside = StoreWriter(objects, writer.record, writer.pass_record, writer.pass_id, writer.num_rows)
        try:
            for key, data in sound:
                objects.write(key, data)
            with _quiet("pipeline.store"):
                yield Staged(objects, replace(self.collector, writer=beside).collect(unit))
        finally:
            for key in objects.list():
                objects.delete(key)

    def compare(self, objects: Objects, entry: LedgerEntry) -> list[Difference]:
        """Compute the unit of ``entry`` and compare it with the store, by hook point. Raises CorruptionError."""
        with self.staged(entry.unit) as staged:
            hooks = self.collector.writer.pass_record.hook_points
            return [self._difference(objects, entry, staged, hook) for hook in hooks]

    def _difference(self, objects: Objects, entry: LedgerEntry, staged: Staged, hook: str) -> Difference:
        writer = self.collector.writer
        record, width = writer.record, writer.pass_record.hook_points[hook]
        stored, computed = (
            UnitObjects(place, record, writer.pass_id, entry.unit, hook, width, entry.num_rows)
            .open(one.objects, set())
            .read(0, entry.num_rows)
            .values(record.dtype)
            for place, one in ((objects, entry), (staged.objects, staged.entry))
        )
        with np.errstate(invalid="ignore", over="ignore"):
            equal = (stored.view(np.uint32) == computed.view(np.uint32)).all(axis=1)
            norms = np.linalg.norm(stored.astype(np.float64), axis=1)
            away = np.linalg.norm(stored.astype(np.float64) - computed, axis=1)
        # NaN where both have it is equal; a row of zeros is measured against an ordinary row.
        away[equal] = 0.0
        ordinary = float(np.median(norms[np.isfinite(norms)])) if np.isfinite(norms).any() else 1.0
        share = away / np.maximum(norms, max(1e-3 * ordinary, 1e-30))
        greatest = float(np.nan_to_num(share, nan=np.inf).max(initial=0.0))
        return Difference(entry.unit, hook, entry.num_rows, int(equal.sum()), greatest, self._tolerance())

    def _tolerance(self) -> float:
        record = self.collector.writer.record
        compute = str(record.identity["model"].get("dtype", "float32"))
        stored = record.dtype if record.dtype in _LOW_BITS else "bfloat16"
        return max(_LOW_BITS.get(compute, 1e-3), _LOW_BITS[stored])


def collect_spec(record: StoreRecord, *, model: str = "", device: str = "") -> CollectSpec:
    """The job that made the store, with the model where it is now.

    Raises:
        MismatchError: it was made by something else than a collection.
    """
    try:
        spec = CollectSpec.model_validate(record.spec)
    except ValidationError as exc:
        kind = record.spec.get("kind", "an unknown job")
        raise MismatchError(f"the store was made by {kind!r}, not by a collection that could be run again") from exc
    changes: dict[str, Any] = {"path": model} if model else {}
    changes |= {"device": device} if device else {}
    return spec.model_copy(update={"model": spec.model.model_copy(update=changes)})


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Taking over what is there is what is wanted here; the writer's warnings about it would only confuse."""
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
