"""The tasks of a shuffle, in one process: scatter rows into runs, gather buckets into units of the new store.

Every task may be done any number of times, by any process, with the same bytes as its result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.order.permutation import KeyedPermutation
from pipeline.shuffling.plan import ShufflePlan
from pipeline.shuffling.prepare import TOKEN_COLUMNS, ShuffleJob, words_column
from pipeline.shuffling.runs import Runs
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.retention import keep_as_wished
from pipeline.store.rows import TokenRows
from pipeline.store.writer import StoreWriter
from schemas.errors import CorruptionError
from schemas.fingerprint import require_equal
from schemas.store import Manifest

Ints = npt.NDArray[np.int64]
Column = tuple[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Done:
    """What a task wrote."""

    num_rows: int
    size_bytes: int


@dataclass(frozen=True)
class Shuffling:
    """A source, the runs, and the store that is written. Use it from one thread at a time."""

    job: ShuffleJob
    source: Store
    writers: Sequence[StoreWriter]
    worker: str
    """Who this is, for the ledger."""

    @classmethod
    def open(cls, job: ShuffleJob, *, worker: str = "local") -> Shuffling:
        """Raises: MismatchError (the source has changed since the job was planned, or the output is another store)."""
        source = Store.open(job.spec.store)
        assert job.record.shuffled is not None
        require_equal(
            {"fingerprint": job.record.shuffled.store_fingerprint, "num_rows": job.num_rows},
            {"fingerprint": source.fingerprint, "num_rows": source.num_rows},
            where=f"the store at {source.url}",
            remedy="It has changed since the shuffle began: choose another output for a shuffle of the new rows.",
        )
        return cls(job, source, job.writers(), worker)

    @property
    def plan(self) -> ShufflePlan:
        return self.job.plan

    @cached_property
    def runs(self) -> Runs:
        return self.job.runs

    @cached_property
    def permutation(self) -> KeyedPermutation:
        return self.job.permutation

    def missing(self, level: int) -> list[int]:
        """Tasks of a scatter pass that have yet to be done, or, ``level`` 0, buckets with units not committed."""
        if level:
            return sorted({*range(self.plan.num_tasks(level))} - {*self.runs.done(level)})
        committed = set.intersection(*({*writer.committed_units()} for writer in self.writers))
        return [one for one in range(self.plan.num_buckets) if not committed.issuperset(self.plan.units(one))]

    def stages(self) -> Iterator[tuple[int, list[int]]]:
        """What is left to do, as ``(level, tasks)`` in order, level 0 the gathering; each is looked up when asked for.

        Runs of passes before the last complete one are not missed: they were deleted.
        """
        if not self.missing(0):
            return
        complete = (level for level in range(self.plan.num_scatters, 0, -1) if not self.missing(level))
        for level in [*range(next(complete, 0) + 1, self.plan.num_scatters + 1), 0]:
            yield level, self.missing(level)
            if level > 1:
                self.runs.delete(level - 1)

    def finish(self) -> Manifest:
        """Write the manifest once all units are committed, and remove the runs. Raises IncompleteError."""
        manifests = [writer.finish() for writer in self.writers]
        keep_as_wished(Objects(self.job.spec.output), self.job.spec.retention)
        self.runs.delete()
        return manifests[-1]

    def do(self, level: int, task: int, *, attempt: int = 0) -> Done:
        """One task of a stage."""
        return self.scatter(level, task) if level else self.gather(task, attempt=attempt)

    def scatter(self, level: int, task: int) -> Done:
        """Write one run of a scatter pass."""
        node = self.plan.node_of(level, task)
        children = self.plan.children(level - 1, node)
        if level == 1:
            start, stop = self.plan.slab(task)
            rows, block = np.arange(start, stop), self._source_block(start, stop)
        else:
            section = self.plan.section_of(node)
            sections = [self.runs.read(level - 1, one, section) for one in self.plan.inputs(level, task)]
            rows, block = np.concatenate([one["row"] for one in sections]), self._joined(sections)
        child = self.permutation.apply(rows) // self.plan.node_rows(level) - children.start
        order = np.argsort(child, kind="stable")
        cuts = np.searchsorted(child[order], np.arange(1, len(children)))
        return Done(len(rows), self.runs.write(level, task, block, np.split(order, cuts)))

    def gather(self, bucket: int, *, attempt: int = 0) -> Done:
        """Write the units of one bucket.

        Raises:
            CorruptionError: the runs do not hold every row of the bucket once.
        """
        start, stop = self.plan.positions(bucket)
        columns = {column.name: column.empty(stop - start) for column in self.job.columns}
        filled = np.zeros(stop - start, dtype=np.int64)
        for block in self._blocks_of(bucket):
            places = self._places(block, start, stop)
            filled += np.bincount(places, minlength=len(filled))
            for name, values in block.items():
                columns[name][places] = values
        if not (filled == 1).all():
            raise CorruptionError(
                f"{self.job.scratch}: expected each row of bucket {bucket} once, got {int((filled == 0).sum())} rows "
                f"not at all and {int((filled > 1).sum())} more than once; delete it and run the shuffle again"
            )
        size_bytes = sum(self._write(unit, columns, start, attempt) for unit in self.plan.units(bucket))
        return Done(stop - start, size_bytes)

    def _blocks_of(self, bucket: int) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
        if self.plan.num_scatters:
            section = self.plan.section_of(bucket)
            for task in self.plan.inputs_of_bucket(bucket):
                yield self.runs.read(self.plan.num_scatters, task, section)
        else:
            for start in range(0, self.plan.num_rows, self.plan.slab_rows):
                stop = min(start + self.plan.slab_rows, self.plan.num_rows)
                yield dict(self._source_block(start, stop))

    def _places(self, block: Mapping[str, npt.NDArray[Any]], start: int, stop: int) -> Ints:
        places = self.permutation.apply(block["row"]) - start
        if len(places) and not 0 <= places.min() <= places.max() < stop - start:
            raise CorruptionError(
                f"{self.job.scratch}: expected rows [{start}, {stop}) of the new store, got others; delete it and run "
                "the shuffle again"
            )
        return places

    def _source_block(self, start: int, stop: int) -> Iterator[Column]:
        tokens = self.source.tokens(start, stop)
        columns = {column.name: getattr(tokens, column.name) for column in TOKEN_COLUMNS}
        if columns["source_row"] is None:
            columns["source_row"] = tokens.row
        yield from columns.items()
        for one in self.job.passes:
            for hook in one.hook_points:
                yield words_column(hook), self.source.read_rows(hook, start, stop)

    def _joined(self, sections: Sequence[dict[str, npt.NDArray[Any]]]) -> Iterator[Column]:
        for column in self.job.columns:
            # Popped, so that of two copies only one column exists at a time.
            yield column.name, np.concatenate([one.pop(column.name) for one in sections])

    def _write(self, unit: int, columns: Mapping[str, npt.NDArray[Any]], first: int, attempt: int) -> int:
        start, stop = self.writers[0].unit_rows(unit)
        mine = slice(start - first, stop - first)
        facts = {column.name: columns[column.name][mine] for column in TOKEN_COLUMNS}
        tokens = TokenRows(**{**facts, "row": np.arange(start, stop)})
        size_bytes = 0
        for writer, one in zip(self.writers, self.job.passes, strict=True):
            arrays = {hook: columns[words_column(hook)][mine] for hook in one.hook_points}
            entry = writer.write_unit(unit, arrays, tokens, worker=self.worker, attempt=attempt, seconds={})
            size_bytes += sum(receipt.size_bytes for receipt in entry.objects.values())
        return size_bytes


def shuffle_here(job: ShuffleJob) -> Manifest:
    """All that is missing, one task after the other; enough for one process."""
    shuffling = Shuffling.open(job)
    for level, tasks in shuffling.stages():
        for task in tasks:
            shuffling.do(level, task)
    return shuffling.finish()
