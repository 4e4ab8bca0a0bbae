"""Computing units: reads the token table, yields committed units of the store. One process, one model.

1. The rows of every context that overlaps the unit are read from the table.
2. They are run in the unit's fixed batches; what lies in the unit is kept in the stored precision.
3. The shards are encoded and written, and the ledger entry is committed.

``collect`` does this for one unit in the calling thread; ``overlapped`` and ``collect_units`` for a stream of units, of
which several are under way. Both give the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from pipeline.collection.inputs import ModelInputs, open_forward, open_inputs, token_inputs
from pipeline.collection.overlap import UNITS_HELD, OverlappedCollector
from pipeline.collection.prepare import CollectPass
from pipeline.collection.staging import open_staging
from pipeline.collection.unit_run import Collected, RowSource, UnitRun, empty_rows
from pipeline.models.forward import ActivationForward, needs_head
from pipeline.models.load import load_model
from pipeline.store.writer import StoreWriter
from pipeline.tokens.table import TokenTable
from schemas.fingerprint import require_equal
from schemas.store import LedgerEntry

__all__ = ["RowSource", "UnitCollector", "collect_units"]


@dataclass(frozen=True)
class UnitCollector:
    """A loaded model, the table it reads and the store it writes. Use it from one thread at a time."""

    forward: ActivationForward
    table: RowSource
    writer: StoreWriter
    worker: str
    """Who this is, for the ledger."""
    inputs: ModelInputs = token_inputs
    """What the model gets of a batch."""

    @classmethod
    def open(cls, one: CollectPass, *, worker: str = "local", table: RowSource | None = None) -> UnitCollector:
        """Load the model, and create or join the store; ``table`` stands in for the pass's own.

        Raises:
            HookPointError: the model lacks a hook point; nothing is written.
            MismatchError: the model here is not the one that the job was planned with, or the store is another's.
        """
        loaded = load_model(one.spec.model, with_head=needs_head(one.hook_points))
        require_equal(
            one.record.identity["model"],
            loaded.identity,
            where=f"the model that worker {worker} loaded",
            remedy="Every machine must see the same files at model.path.",
        )
        forward = open_forward(loaded, one.spec, one.hook_points)
        rows = table or TokenTable.open(one.table_url)
        return cls(forward, rows, one.writer(forward.widths), worker, open_inputs(one.spec, rows))

    def collect(self, unit: int, attempt: int = 0) -> LedgerEntry:
        """Compute, write and commit one unit; the entry that counts, an earlier attempt's if there was one."""
        run = self.begin(unit, attempt)
        run.read()
        run.kept = empty_rows(self.writer, run.num_rows)
        staging = open_staging(self.forward.device, self.writer.record.dtype)
        for batch in run.batches:
            staged = run.forward(batch, staging)
            run.keep(batch, staged)
            staged.release()
        for hook in run.hook_points:
            run.write(hook, run.encode(hook))
        return run.commit().entry

    def begin(self, unit: int, attempt: int = 0) -> UnitRun:
        """One attempt at a unit, of which nothing is done yet."""
        return UnitRun(self.table, self.forward, self.writer, self.worker, unit, attempt, self.inputs)

    def overlapped(self) -> OverlappedCollector[Collected]:
        """The same for a stream of units. While it is open, its threads alone use the model."""
        return OverlappedCollector(self.begin, self.writer, self.forward.device, lambda run: run.commit())


def collect_units(collector: UnitCollector, units: Iterable[int]) -> Iterator[LedgerEntry]:
    """Collect units, of which several are under way, and yield their entries in order; enough for one process.

    The first error comes out as it was raised. Units that were under way then, or when the caller stops early, are
    committed or not; their threads have ended when this returns.
    """
    with collector.overlapped() as stages:
        waiting: deque[Future[Collected]] = deque()
        for unit in units:
            waiting.append(stages.submit(unit))
            if len(waiting) > UNITS_HELD:
                yield waiting.popleft().result().entry
        while waiting:
            yield waiting.popleft().result().entry
