"""Job kind ``shuffle``: rewrite a store in a random order, so that later reads are sequential."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from schemas.fields import ByteSize, HookPoint, InputUrl, Name, OptionalOutputUrl, OutputUrl, Spec
from schemas.retention import RetentionSpec
from schemas.workers import WorkerLimits


class ShuffleWorkers(WorkerLimits):
    """Resources of a shuffle. Neither they nor the memory decide the order: any give the same bytes."""

    num_workers: NonNegativeInt = 0
    """Processes; 0: as many as the cluster's CPUs allow, more when nodes join, fewer when they leave."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """CPU cores of one process."""
    memory: ByteSize = 2**30
    """What one process may hold of rows. It decides the number of passes: one where half of it holds the whole store,
    two up to memory * memory / 6 MiB (170 GiB for 1 GiB), and one more for each further factor of memory / 3 MiB."""


class ShuffleSpec(Spec):
    """Rewrite a store with its rows in one random order."""

    kind: Literal["shuffle"] = "shuffle"
    """Discriminator."""
    name: Name = "shuffle"
    """Name of this job; other jobs of a pipeline refer to it."""
    store: InputUrl
    """The complete store to read, or ``${NAME}`` of a collect job of the same pipeline."""
    hook_points: list[HookPoint] = []
    """Which hook points to rewrite; none: all of the store's."""
    seed: NonNegativeInt = 0
    """Seed of the order. Shuffles of equal seed of stores of one token table are row-aligned."""
    workers: ShuffleWorkers = ShuffleWorkers()
    """Resources."""
    retention: RetentionSpec = RetentionSpec()
    """How long the new store is kept, and how large it may become. Never part of its identity."""
    scratch: OptionalOutputUrl = ""
    """Folder or URL for the rows between two passes, as large as the store; empty: ``OUTPUT.scratch``. Removed at the
    end."""
    output: OutputUrl
    """Folder or URL of the new store."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.hook_points)) != len(self.hook_points):
            raise ValueError(f"hook_points names one hook point twice: {self.hook_points}")
        if self.output.rstrip("/") == self.store.rstrip("/"):
            raise ValueError(f"output is the store itself ({self.store}): a shuffled store is a new one")
        return self


class RunReceipt(Spec):
    """``LEVEL/TASK.json`` in the scratch folder: what a run of rows between two passes holds."""

    section_rows: list[NonNegativeInt]
    """Rows of each section, in order."""
    section_crc32c: list[str]
    """CRC-32C of each section, 8 hexadecimal digits."""
