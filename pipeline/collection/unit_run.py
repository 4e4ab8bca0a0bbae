"""One unit from its token rows to its ledger entry, a step at a time.

``read``, then ``forward`` and ``keep`` for each batch, ``encode`` and ``write`` for each hook point, then ``commit``.
Each step belongs to one stage of ``overlap``, so that several units can be under way, each in another stage; called one
after the other they collect a unit in one thread. Nothing of a unit exists for readers before its ``commit``.

Letters: B contexts of a batch, L padded length, D width of the hook point, n rows of the unit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.collection.inputs import ModelInputs, token_inputs
from pipeline.collection.plan import Batch, unit_batches
from pipeline.collection.seconds import Stage, StageSeconds
from pipeline.collection.staging import Staged, Staging
from pipeline.store.ledger import warn_if_different
from pipeline.store.parallel import MapBlocks
from pipeline.store.rows import TokenRows
from pipeline.store.unit_part import EncodedPart, UnitPart, WrittenPart
from pipeline.store.words import Words, stored_dtype
from pipeline.store.writer import StoreWriter
from schemas.store import LedgerEntry, ObjectReceipt

Kept = dict[str, Words]
"""Hook point -> [n, D] in the stored precision, of a lossy store float32."""


class RowSource(Protocol):
    """Token rows by their index, a whole context at a time: a token table, or the store's own copy of it."""

    def rows(self, start: int, stop: int) -> TokenRows:
        """Rows [start, stop)."""

    def covering(self, start: int, stop: int) -> tuple[int, int]:
        """``(first, last)``: [start, stop) widened to whole contexts."""


class Network(Protocol):
    """What a unit's batches are run through, for example an ``ActivationForward``."""

    def run(self, token_ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Activations [B, L, D] of the hook points that this process computes."""


@dataclass(frozen=True)
class UnitParts:
    """What one process has written of a unit. Picklable and small."""

    written: Mapping[str, WrittenPart] | None
    """By hook point; None where the unit was found committed and nothing was written."""
    seconds: dict[str, float]


@dataclass(frozen=True)
class Collected:
    """A committed unit."""

    entry: LedgerEntry
    """The entry that counts, an earlier attempt's if there was one."""
    seconds: dict[str, float]
    """Of this attempt, see ``StageSeconds``."""


@dataclass
class UnitRun:
    """One attempt at one unit. Steps of one stage come from one thread at a time, but for ``write``."""

    source: RowSource
    network: Network
    writer: StoreWriter
    worker: str
    unit: int
    attempt: int
    inputs: ModelInputs = token_inputs
    seconds: StageSeconds = field(default_factory=StageSeconds)
    batches: list[Batch] = field(default_factory=list)
    """Of all contexts that overlap the unit, once they are read."""
    kept: Kept = field(default_factory=dict)
    """Where the unit's rows go; whoever runs the unit sets it before the first ``keep``."""
    _covering: TokenRows | None = None
    _start: int = 0
    _winner: LedgerEntry | None = None
    _is_looked_up: bool = False
    _written: dict[str, WrittenPart] = field(default_factory=dict)
    _receipts: dict[str, ObjectReceipt] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def num_rows(self) -> int:
        """n."""
        start, stop = self.writer.unit_rows(self.unit)
        return stop - start

    @property
    def hook_points(self) -> list[str]:
        """In the order in which they are encoded."""
        return sorted(self.writer.pass_record.hook_points)

    def read(self) -> None:
        """Read the rows of every context that overlaps the unit, and cut them into the unit's fixed batches."""
        with self._timed("read"):
            start, stop = self.writer.unit_rows(self.unit)
            first, last = self.source.covering(start, stop)
            self._covering, self._start = self.source.rows(first, last), start - first
            self.batches = unit_batches(self._covering.position, self.writer.pass_record.batch_tokens)

    def forward(self, batch: Batch, staging: Staging) -> Staged:
        """Run one batch and send its activations to host memory. Its seconds are counted by ``keep``."""
        assert self._covering is not None
        inputs = self.inputs(batch, self._covering)
        started = staging.start()
        return staging.stage(self.network.run(inputs, torch.from_numpy(batch.lengths)), started)

    def keep(self, batch: Batch, staged: Staged) -> None:
        """Wait for a batch and take the unit's rows of it; the caller releases the batch."""
        arrived = staged.wait()
        with self._timed("copy"):
            for hook, words_BLD in arrived.words.items():
                _keep(words_BLD, batch, self._start, self.kept[hook])
        self.seconds.work("forward", arrived.forward_s)
        self.seconds.work("copy", arrived.copy_s)

    def encode(self, hook: str, each: MapBlocks = map) -> EncodedPart:
        """Encode and measure the rows of one hook point; ``each`` may spread blocks of rows over threads."""
        with self._timed("encode"):
            return self._part(hook).encode(self.kept[hook], each=each)

    def write(self, hook: str, part: EncodedPart) -> None:
        """Create the objects of one hook point, unless the unit is committed already. From any number of threads."""
        with self._timed("write"):
            self._look_up()
            self._receipts |= part.encoded.receipts
            if self._winner is None:
                self._written[hook] = self._part(hook).create(part)

    def parts(self) -> UnitParts:
        """What is written, for the process that commits the unit where several compute it."""
        if self.hook_points:
            return UnitParts(None if self._winner is not None else self._written, self.seconds.figures())
        return UnitParts({}, self.seconds.figures())

    def commit(self) -> Collected:
        """Commit the unit, all of whose hook points are written."""
        if self._winner is not None:
            objects = self.writer.objects.url
            warn_if_different(objects, self._winner, self._receipts, attempt=self.attempt, worker=self.worker)
            return Collected(self._winner, self.seconds.figures())
        with self._timed("commit"):
            entry = self.writer.commit(
                self.unit,
                self._written,
                self.tokens,
                worker=self.worker,
                attempt=self.attempt,
                seconds=self.seconds.figures(),
            )
        return Collected(entry, self.seconds.figures())

    def _look_up(self) -> None:
        """Once, before anything is written: has another attempt committed the unit?"""
        with self._lock:
            if not self._is_looked_up:
                self.writer.require_unit(self.unit, self.kept, self.tokens)
                self._winner = self.writer.ledger.read(self.unit)
                self._is_looked_up = True

    @property
    def tokens(self) -> TokenRows:
        """The unit's rows, once they are read."""
        assert self._covering is not None
        return self._covering.slice(self._start, self._start + self.num_rows)

    def _part(self, hook: str) -> UnitPart:
        return self.writer.part(self.unit, hook, self.tokens)

    @contextmanager
    def _timed(self, stage: Stage) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds.work(stage, time.perf_counter() - began)


def empty_rows(writer: StoreWriter, num_rows: int) -> Kept:
    """Room for ``num_rows`` rows of every hook point of the pass, in the precision in which they are kept."""
    dtype = stored_dtype("float32" if writer.record.lossy else writer.record.dtype)
    return {hook: np.empty((num_rows, width), dtype=dtype) for hook, width in writer.pass_record.hook_points.items()}


def first_rows(kept: Mapping[str, Words], num_rows: int) -> Kept:
    """Views of the first rows."""
    return {hook: rows[:num_rows] for hook, rows in kept.items()}


def _keep(words_BLD: Words, batch: Batch, start: int, kept: Words) -> None:
    """Copy what the batch holds of the unit, whose first row is the covering row ``start``, into ``kept`` [n, D]."""
    stop = start + len(kept)
    for words_LD, begin, length in zip(words_BLD, batch.starts.tolist(), batch.lengths.tolist(), strict=True):
        lower, upper = max(begin, start), min(begin + length, stop)
        if lower < upper:
            kept[lower - start : upper - start] = words_LD[lower - begin : upper - begin]
