"""How a store is shuffled in few passes with little memory: pure functions of its size.

Every row r of the source has its position p = P(r) in the output, P a keyed permutation. Positions are cut into
*buckets* of whole output units, each of which fits into memory.

1. Scatter. A task reads a slab of rows and writes them as one *run*: sections, one for each group of buckets, in order.
   There are at most ``fan_out`` sections, so that none is too small to be read by itself. Where there are more buckets
   than that, further scatter passes cut the groups, reading sections of as many runs as make a slab.
2. Gather. A task reads all sections of a bucket, puts every row at its position, and writes the bucket's units.

A tree of *nodes*: node i of level l is the buckets [i * width(l), (i + 1) * width(l)), width(l) = fan_out ** (L - l).
The root is level 0, the buckets are level L, and scatter pass l writes sections for nodes of level l. Nothing here
depends on what the rows are, and the output depends on nothing here.
Source of the scheme: Anthropic, "The engineering challenges of scaling interpretability" (2024).
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.errors import ResourceError
from schemas.fields import about_bytes

MIN_SECTION_BYTES = 2**20
"""Sections shorter than this cost more in requests than in bytes."""


@dataclass(frozen=True)
class ShufflePlan:
    """Sizes of all tasks."""

    num_rows: int
    shard_rows: int
    """Rows of an output unit."""
    bucket_units: int
    """Output units of a bucket."""
    slab_rows: int
    """Rows that a scatter task reads, on average in later passes."""
    fan_out: int
    """Most sections of a run."""

    @property
    def bucket_rows(self) -> int:
        return self.bucket_units * self.shard_rows

    @property
    def num_buckets(self) -> int:
        return _parts(self.num_rows, self.bucket_rows)

    @property
    def num_scatters(self) -> int:
        """L, scatter passes; 0 where one bucket holds everything."""
        levels, reach = 0, 1
        while reach < self.num_buckets:
            levels, reach = levels + 1, reach * self.fan_out
        return levels

    @property
    def num_passes(self) -> int:
        """How often every row is read and written."""
        return self.num_scatters + 1

    def width(self, level: int) -> int:
        """Buckets of a node; the last node of a level may have fewer."""
        return int(self.fan_out ** (self.num_scatters - level))

    def num_nodes(self, level: int) -> int:
        """Nodes of a level."""
        return _parts(self.num_buckets, self.width(level))

    def node_rows(self, level: int) -> int:
        """Positions of a node; the last node of a level may have fewer."""
        return self.width(level) * self.bucket_rows

    def children(self, level: int, node: int) -> range:
        """Nodes of the next level that make up a node."""
        first = node * self.fan_out
        return range(first, min(first + self.fan_out, self.num_nodes(level + 1)))

    def runs_of_node(self, level: int) -> int:
        """Runs that scatter pass ``level`` writes for each node of the level above."""
        runs = _parts(self.num_rows, self.slab_rows)
        for _ in range(level - 1):
            runs = _parts(runs, self.fan_out)
        return runs

    def num_tasks(self, level: int) -> int:
        """Tasks of scatter pass ``level``, 1 to L."""
        return self.num_nodes(level - 1) * self.runs_of_node(level)

    def slab(self, task: int) -> tuple[int, int]:
        """Source rows [start, stop) of a task of the first scatter pass."""
        return task * self.slab_rows, min(self.num_rows, (task + 1) * self.slab_rows)

    def node_of(self, level: int, task: int) -> int:
        """The node of the level above whose rows the task cuts into children."""
        return task // self.runs_of_node(level)

    def inputs(self, level: int, task: int) -> range:
        """Tasks of the scatter pass before whose runs a task of a later pass reads: the sections of its node."""
        node, group = divmod(task, self.runs_of_node(level))
        runs = self.runs_of_node(level - 1)
        first = node // self.fan_out * runs
        return range(first + group * self.fan_out, first + min((group + 1) * self.fan_out, runs))

    def inputs_of_bucket(self, bucket: int) -> range:
        """Tasks of the last scatter pass whose runs have a section for the bucket."""
        runs = self.runs_of_node(self.num_scatters)
        return range(bucket // self.fan_out * runs, (bucket // self.fan_out + 1) * runs)

    def section_of(self, node: int) -> int:
        """Place of a node's section in every run that has one."""
        return node % self.fan_out

    def positions(self, bucket: int) -> tuple[int, int]:
        """Output rows [start, stop) of a bucket."""
        return bucket * self.bucket_rows, min(self.num_rows, (bucket + 1) * self.bucket_rows)

    def units(self, bucket: int) -> range:
        """Output units of a bucket."""
        start, stop = self.positions(bucket)
        return range(start // self.shard_rows, _parts(stop, self.shard_rows))


def plan_shuffle(
    num_rows: int, row_bytes: int, shard_rows: int, memory: int, *, min_section_bytes: int = MIN_SECTION_BYTES
) -> ShufflePlan:
    """The plan with the fewest passes for tasks that hold at most ``memory`` bytes of rows.

    A scatter task holds what it read and the run that it writes, with a third to spare; a gather task holds its bucket
    and writes a unit of it at a time.

    Raises:
        ResourceError: not even one unit fits.
    """
    unit_rows = min(shard_rows, num_rows)
    needed = 2 * unit_rows * row_bytes
    if needed > memory:
        raise ResourceError(
            f"workers.memory is {about_bytes(memory)}, but a unit of {unit_rows:,} rows of {row_bytes:,} bytes takes "
            f"{about_bytes(needed)} to shuffle: set workers.memory to that at least, or shuffle fewer hook points."
        )
    slab_rows = max(1, memory // (3 * row_bytes))
    return ShufflePlan(
        num_rows=num_rows,
        shard_rows=shard_rows,
        bucket_units=max(1, memory // (2 * row_bytes * shard_rows)),
        slab_rows=slab_rows,
        fan_out=max(2, slab_rows * row_bytes // min_section_bytes),
    )


def _parts(whole: int, size: int) -> int:
    return -(-whole // size)
