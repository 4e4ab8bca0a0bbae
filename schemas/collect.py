"""Job kind ``collect``: run a model over a token table and store activations."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from schemas.corpus import TokensSpec
from schemas.fields import LOSSY, Codec, Dtype, HookPoint, Layout, Name, OutputUrl, Spec
from schemas.model import ModelSpec
from schemas.reach import Reach
from schemas.retention import RetentionSpec
from schemas.snapshots import ModelReference, Snapshots
from schemas.workers import WorkerLimits

Placement = Literal["auto", "replica", "stages", "tensor"]


class Storage(Spec):
    """How activations are laid out. Decides bytes, so it is part of the store's identity."""

    layout: Layout = "zarr"
    """``zarr``: Zarr v3 arrays, for any storage. ``arrow``: Arrow IPC files, for local disks and Arrow readers."""
    dtype: Dtype = "bfloat16"
    """Stored precision; bfloat16 is kept as uint16 words. ``int8`` and ``float8_e4m3`` round coarsely, with a float32
    scale for each row: they need ``lossy: true``, and their relative error is measured and kept in the manifest."""
    lossy: bool = False
    """Consent to ``int8`` and ``float8_e4m3``; false with every other dtype."""
    chunk_rows: PositiveInt = 1024
    """Rows in one inner chunk, the least that is read and checked at once."""
    shard_rows: PositiveInt = 32768
    """Rows in one shard: one unit of work, one object, one PUT. A multiple of ``chunk_rows``."""
    codec: Codec = "none"
    """``none``: fastest on local disks, memory-mapped. ``zstd``: Blosc byte shuffle + zstd level 1, for slow links.
    ``bf16``: entropy-coded exponents, of dtype bfloat16 only. ``sparse``: exact zeros left out, for neurons behind a
    ReLU and the like; chunks with few zeros stay as they are. Layout ``arrow`` has ``none`` only."""

    @model_validator(mode="after")
    def _loss_is_asked_for(self) -> Self:
        if self.dtype in LOSSY and not self.lossy:
            raise ValueError(f"dtype {self.dtype} rounds coarsely and cannot be undone: add lossy: true to accept that")
        if self.lossy and self.dtype not in LOSSY:
            raise ValueError(f"lossy: true goes with {', '.join(sorted(LOSSY))} only; dtype is {self.dtype}")
        return self

    @model_validator(mode="after")
    def _codec_fits(self) -> Self:
        if self.layout == "arrow" and self.codec != "none":
            raise ValueError(f"layout arrow is memory-mapped and has codec none only; codec is {self.codec}")
        if self.codec == "bf16" and self.dtype != "bfloat16":
            raise ValueError(f"codec bf16 encodes dtype bfloat16 only; dtype is {self.dtype}")
        return self

    @model_validator(mode="after")
    def _whole_chunks(self) -> Self:
        if self.shard_rows % self.chunk_rows:
            raise ValueError(f"shard_rows ({self.shard_rows}) must be a multiple of chunk_rows ({self.chunk_rows})")
        return self


class StatisticsSpec(Spec):
    """What is measured of the rows while they are written, besides mean, variance, norms and NaN counts."""

    covariance: bool = False
    """Covariance of the channels of each hook point: one float64 object of d_model * (d_model + 1) / 2 numbers for each
    unit, that is 2 * d_model / shard_rows of a 16-bit store's size."""
    outlier_tokens: NonNegativeInt = 16
    """How many rows of greatest norm to name for each hook point."""


class CollectWorkers(WorkerLimits):
    """Resources of collection. Never part of a fingerprint."""

    num_workers: NonNegativeInt = 0
    """Model replicas; 0: as many as the cluster's CPUs or GPUs allow, more when nodes join, fewer when they leave."""
    placement: Placement = "auto"
    """Where a replica is. ``replica``: whole in one process. ``stages``: contiguous blocks of the network in several
    processes, which hand on the hidden state; the same bytes. ``tensor``: every matrix split over several processes of
    one node; low bits differ, so it is part of what the store says of these hook points. ``auto``: the first of
    ``replica``, ``tensor`` (on GPUs) and ``stages`` that the memory allows; ``headworks plan`` says which and why."""
    processes_per_replica: NonNegativeInt = 0
    """Processes of a replica that is placed in ``stages`` or by ``tensor``; 0: as few as the memory allows, 2 at
    least."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """CPU cores (and torch threads) of one process of a replica."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs of one process of a replica."""

    @model_validator(mode="after")
    def _several_processes(self) -> Self:
        several = self.placement in ("stages", "tensor")
        if self.processes_per_replica > 1 and not several:
            raise ValueError(
                f"processes_per_replica ({self.processes_per_replica}) goes with placement stages or tensor; placement "
                f"is {self.placement}"
            )
        if self.processes_per_replica == 1 and several:
            raise ValueError(f"placement {self.placement} takes several processes; processes_per_replica is 1")
        return self


class CollectSpec(Spec):
    """Collect activations into a store."""

    kind: Literal["collect"] = "collect"
    """Discriminator."""
    name: Name = "collect"
    """Name of this job; other jobs of a pipeline refer to it."""
    model: ModelSpec
    """The network to run."""
    snapshots: Snapshots = {}
    """Several networks on one token table, into a store group: name -> the fields of ``model`` that this one has
    otherwise, for example ``{step0: {revision: step0}, step512: {revision: step512}}``. ``model`` itself is not
    collected then, but its tokenizer makes the token table, and every snapshot that has one must have an equal one.
    ``snapshots: ${NAME}`` is short for ``snapshots_of``."""
    snapshots_of: ModelReference = ""
    """``${NAME}`` of a train_model job of the same pipeline: the snapshots that it keeps, named ``stepN``."""
    snapshot_steps: list[NonNegativeInt] = []
    """Of ``snapshots_of``, those of these steps; empty: all."""
    snapshot_folders: Annotated[str, Reach("model_folders")] = ""
    """The same by a pattern of local folders (or GGUF files), such as ``checkpoints/step*``: each is a snapshot, named
    by the parts of its path that have wildcards, in natural order."""
    tokens: TokensSpec
    """The corpus and how it is tokenised."""
    hook_points: Annotated[list[HookPoint], Field(min_length=1)]
    """TransformerLens hook names or ``module:<path>:in|out``."""
    batch_tokens: PositiveInt = 4096
    """Tokens (padding included) in one forward pass. Part of the fingerprint: it can change low bits."""
    storage: Storage = Storage()
    """Layout of the store."""
    statistics: StatisticsSpec = StatisticsSpec()
    """What is measured of the rows."""
    retention: RetentionSpec = RetentionSpec()
    """How long the store is kept."""
    workers: CollectWorkers = CollectWorkers()
    """Resources."""
    output: OutputUrl
    """Folder or URL of the store, or of the group: a store below it for each snapshot."""

    @model_validator(mode="before")
    @classmethod
    def _reference(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("snapshots"), str):
            return {**data, "snapshots": {}, "snapshots_of": data["snapshots"]}
        return data

    @model_validator(mode="after")
    def _distinct_hooks(self) -> Self:
        if len(set(self.hook_points)) != len(self.hook_points):
            raise ValueError(f"hook_points names one hook point twice: {self.hook_points}")
        return self

    @model_validator(mode="after")
    def _images_are_seen(self) -> Self:
        if (self.model.kind == "vision") != (self.tokens.corpus.format == "images"):
            raise ValueError(
                f"model.kind vision and a corpus of images go together; here the kind is {self.model.kind} and the "
                f"corpus's format {self.tokens.corpus.format}"
            )
        if self.model.kind == "vision" and self.workers.placement in ("stages", "tensor"):
            raise ValueError(f"models of kind vision are not cut up; workers.placement is {self.workers.placement}")
        return self

    @model_validator(mode="after")
    def _steps_are_of_a_training(self) -> Self:
        if self.snapshot_steps and not self.snapshots_of:
            raise ValueError("snapshot_steps chooses among the snapshots of snapshots_of, which is not given")
        return self

    @model_validator(mode="after")
    def _snapshots_once(self) -> Self:
        if bool(self.snapshots) + bool(self.snapshot_folders) + bool(self.snapshots_of) > 1:
            raise ValueError("give snapshots by name, by snapshot_folders or by snapshots_of, not both")
        return self

    @property
    def is_group(self) -> bool:
        """Several snapshots are collected: ``output`` is a store group."""
        return bool(self.snapshots or self.snapshot_folders or self.snapshots_of)
