"""Computing one unit: reads the token table, yields a committed unit of the store. One process, one model.

1. The rows of every context that overlaps the unit are read from the table.
2. They are run in the unit's fixed batches; what lies in the unit is rounded to the stored precision in place.
3. The writer encodes the shards, writes them and commits the ledger entry.

Letters: B contexts of a batch, L padded length, D width of the hook point, n rows of the unit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.collection.plan import Batch, unit_batches
from pipeline.collection.prepare import CollectPass
from pipeline.models.forward import ActivationForward
from pipeline.models.load import load_model
from pipeline.store.rows import TokenRows
from pipeline.store.words import Words
from pipeline.store.writer import StoreWriter
from pipeline.tokens.table import TokenTable
from schemas.fields import Dtype
from schemas.fingerprint import require_equal
from schemas.store import LedgerEntry

_TORCH: dict[Dtype, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    # Lossy rows are rounded by the writer, which measures the loss against these values.
    "int8": torch.float32,
    "float8_e4m3": torch.float32,
}


class RowSource(Protocol):
    """Token rows by their index, a whole context at a time: a token table, or the store's own copy of it."""

    def rows(self, start: int, stop: int) -> TokenRows:
        """Rows [start, stop)."""

    def covering(self, start: int, stop: int) -> tuple[int, int]:
        """``(first, last)``: [start, stop) widened to whole contexts."""


@dataclass(frozen=True)
class UnitCollector:
    """A loaded model, the table it reads and the store it writes. Use it from one thread at a time."""

    forward: ActivationForward
    table: RowSource
    writer: StoreWriter
    worker: str
    """Who this is, for the ledger."""

    @classmethod
    def open(cls, one: CollectPass, *, worker: str = "local", table: RowSource | None = None) -> UnitCollector:
        """Load the model, and create or join the store; ``table`` stands in for the pass's own.

        Raises:
            HookPointError: the model lacks a hook point; nothing is written.
            MismatchError: the model here is not the one that the job was planned with, or the store is another's.
        """
        loaded = load_model(one.spec.model)
        require_equal(
            one.record.identity["model"],
            loaded.identity,
            where=f"the model that worker {worker} loaded",
            remedy="Every machine must see the same files at model.path.",
        )
        forward = ActivationForward(loaded, one.hook_points)
        return cls(forward, table or TokenTable.open(one.table_url), one.writer(forward.widths), worker)

    def collect(self, unit: int, attempt: int = 0) -> LedgerEntry:
        """Compute, write and commit one unit; the entry that counts, an earlier attempt's if there was one."""
        started = time.perf_counter()
        start, stop = self.writer.unit_rows(unit)
        first, rows = self._covering_rows(start, stop)
        read = time.perf_counter()
        arrays = self._run(rows, start - first, stop - first)
        return self.writer.write_unit(
            unit,
            arrays,
            rows.slice(start - first, stop - first),
            worker=self.worker,
            attempt=attempt,
            seconds={"read": read - started, "forward": time.perf_counter() - read},
        )

    def _covering_rows(self, start: int, stop: int) -> tuple[int, TokenRows]:
        """The first row of the contexts that overlap rows [start, stop), and their rows."""
        first, last = self.table.covering(start, stop)
        return first, self.table.rows(first, last)

    @torch.no_grad()
    def _run(self, rows: TokenRows, start: int, stop: int) -> dict[str, Words]:
        """Words [n, D] (of a lossy store, float32 values) of rows [start, stop) of ``rows``, for each hook point."""
        dtype = _TORCH[self.writer.record.dtype]
        kept = {hook: torch.empty((stop - start, D), dtype=dtype) for hook, D in self.forward.widths.items()}
        for batch in unit_batches(rows.position, self.writer.pass_record.batch_tokens):
            token_ids = torch.from_numpy(batch.token_matrix(rows.token_id))
            for hook, acts_BLD in self.forward.run(token_ids, torch.from_numpy(batch.lengths)).items():
                _keep(acts_BLD, batch, start, stop, kept[hook])
        return {hook: _words(tensor) for hook, tensor in kept.items()}


def collect_units(collector: UnitCollector, units: Iterable[int]) -> Iterator[LedgerEntry]:
    """Collect units one after the other; enough for one process."""
    for unit in units:
        yield collector.collect(unit)


def _keep(acts_BLD: Tensor, batch: Batch, start: int, stop: int, kept: Tensor) -> None:
    """Copy the rows [start, stop) that the batch holds into ``kept`` [n, D], rounding to its precision."""
    if acts_BLD.device.type != "cpu":
        # Rounded before the copy: half the bytes cross the bus, and they cross it once.
        acts_BLD = acts_BLD.to(kept.dtype).cpu()
    for acts_LD, begin, length in zip(acts_BLD, batch.starts.tolist(), batch.lengths.tolist(), strict=True):
        lower, upper = max(begin, start), min(begin + length, stop)
        if lower < upper:
            kept[lower - start : upper - start].copy_(acts_LD[lower - begin : upper - begin])


def _words(kept: Tensor) -> Words:
    """The stored form, sharing memory."""
    words: Words = (kept.view(torch.uint16) if kept.dtype == torch.bfloat16 else kept).numpy()
    return words
