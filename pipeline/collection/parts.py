"""Units that several processes compute together, each some hook points of every unit.

Each process, a stage of the network or a rank of a tensor-parallel group, reads the same tokens, runs the same batches
and writes the objects of its own hook points. One of them leads: it waits for what the others have written and commits
the unit's only ledger entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.collection.overlap import OverlappedCollector
from pipeline.collection.prepare import CollectPass
from pipeline.collection.seconds import added
from pipeline.collection.unit_run import Collected, Network, RowSource, UnitParts, UnitRun
from pipeline.store.writer import StoreWriter
from pipeline.tokens.table import TokenTable

Others = Callable[[int, int], Sequence[UnitParts]]
"""What the other processes have written of (unit, attempt); waits for them, and raises the error of one that failed."""


NetworkOf = Callable[[int, int, Callable[[], int]], Network]
"""The network that runs (unit, attempt); it is given what tells the number of its batches, once they are read."""


@dataclass(frozen=True)
class PartCollector:
    """One process of several. Holds facts only."""

    network_of: NetworkOf
    hook_points: Sequence[str]
    """This process's own; may be none."""
    device: torch.device
    table: RowSource
    whole: StoreWriter
    """Of all hook points of the pass."""
    worker: str

    @classmethod
    def open(
        cls,
        one: CollectPass,
        widths: Mapping[str, int],
        hook_points: Sequence[str],
        network_of: NetworkOf,
        device: torch.device,
        *,
        worker: str,
    ) -> PartCollector:
        """Create or join the store; ``widths`` of all hook points of the pass.

        Raises:
            MismatchError: the store is another's.
        """
        table = TokenTable.open(one.table_url)
        return cls(network_of, hook_points, device, table, one.writer(widths), worker)

    @property
    def own(self) -> StoreWriter:
        """Of this process's hook points, into the same pass."""
        record = self.whole.pass_record
        widths = {hook: record.hook_points[hook] for hook in self.hook_points}
        return replace(self.whole, pass_record=record.model_copy(update={"hook_points": widths}))

    def begin(self, unit: int, attempt: int) -> UnitRun:
        """This process's part of one attempt at a unit."""
        network = self.network_of(unit, attempt, lambda: len(run.batches))
        run = UnitRun(self.table, network, self.own, self.worker, unit, attempt)
        return run

    def following(self) -> OverlappedCollector[UnitParts]:
        """For a stream of units; gives what is written of each."""
        return OverlappedCollector(self.begin, self.own, self.device, UnitRun.parts)

    def leading(self, others: Others) -> OverlappedCollector[Collected]:
        """For a stream of units; commits each once the others have written theirs."""

        def commit(run: UnitRun) -> Collected:
            return commit_joined(run, self.whole, others(run.unit, run.attempt))

        return OverlappedCollector(self.begin, self.own, self.device, commit)


def commit_joined(run: UnitRun, whole: StoreWriter, others: Sequence[UnitParts]) -> Collected:
    """Commit what all processes have written of a unit; the entry that counts, another attempt's if there was one.

    The entry's seconds are those of all processes together.
    """
    all_parts = [run.parts(), *others]
    seconds = added(parts.seconds for parts in all_parts)
    if any(parts.written is None for parts in all_parts):
        entry = whole.ledger.read(run.unit)
        assert entry is not None, "one process found the unit committed"
        return Collected(entry, seconds)
    written = {hook: part for parts in all_parts for hook, part in (parts.written or {}).items()}
    entry = whole.commit(run.unit, written, run.tokens, worker=run.worker, attempt=run.attempt, seconds=seconds)
    return Collected(entry, seconds)
