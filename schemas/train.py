"""Job kind ``train``: any number of dictionaries from one read of a store."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from schemas.dictionary import DictionarySpec
from schemas.fields import InputUrl, Name, OutputUrl, Spec
from schemas.optimiser import Muon
from schemas.reach import Reach
from schemas.sweep import Sweep, expand


class RowFilter(Spec):
    """Rows that training leaves out. The store keeps them: this is a mask, not a deletion."""

    exclude_specials: bool = True
    """Leave out special tokens (BOS, EOS, separators)."""
    exclude_positions: list[NonNegativeInt] = [0]
    """Positions within a context to leave out; the first position is the usual attention sink."""
    max_norm_multiple: NonNegativeFloat = 0.0
    """Leave out rows whose norm exceeds this multiple of the median norm at any hook point in use; 0: keep all."""


class RowOrder(Spec):
    """The order of rows: a pure function of (store, filter, seed, epoch, batch), the same for any number of ranks."""

    seed: NonNegativeInt = 0
    """Seed of both shuffle levels."""
    window_chunks: PositiveInt = 64
    """Chunks whose rows are permuted together, level two of the shuffle. More: better mixing, more memory."""
    mode: Literal["shuffled", "sequential"] = "shuffled"
    """``shuffled``: a window's chunks come from anywhere in the store. ``sequential``: they are neighbours, windows in
    the store's order, so that reads are sequential: as good a shuffle only of a store that a shuffle job wrote."""


class Schedule(Spec):
    """Learning rate over the run: linear warm-up, constant, linear decay to zero."""

    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of all steps over which the rate rises from 0."""
    decay_fraction: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of all steps over which the rate falls to 0, at the end."""


class DivergenceCheck(Spec):
    """When a dictionary counts as diverged and is stopped. Its last good checkpoint is what is kept of it; the other
    dictionaries of the job go on, and the job fails when they are done."""

    fvu_multiple: NonNegativeFloat = 10.0
    """How many times the lowest median FVU so far, or 1 (what predicting the mean gives) if that is higher, the median
    FVU may be; 0: only a loss or a gradient that is not finite stops a dictionary."""
    window_steps: PositiveInt = 50
    """Steps of a median. An error that explodes is found after half as many."""


class HeldOut(Spec):
    """Figures on rows that training never sees: of the documents that the collect job held out
    (``tokens.held_out_fraction``), as ``rows`` leaves them. FVU, L0, loss, and the share of latents that none of these
    rows turns on, as ``held_out_fvu``, ... beside those of training; the loss is without AuxK and the model's.
    They do not change what is trained. Of feeds other than ``stored`` the rows are some of those that the statistics
    are from, so they may be fewer."""

    num_rows: PositiveInt = 16_384
    """How many, at most; the ranks keep them in memory as float32, each its share."""
    evaluate_every_steps: PositiveInt = 200
    """Steps between evaluations; the last step has one in any case. One costs about as much as training on as many
    rows."""
    seed: NonNegativeInt = 0
    """Which rows."""


class TrainWorkers(Spec):
    """Resources of training. Never part of a fingerprint."""

    num_workers: PositiveInt = 1
    """Ranks. Results do not depend on their number but for the order of float additions."""
    latent_shards: PositiveInt = 1
    """Ranks that hold a dictionary together, each a slice of its latents, and see the same rows: for dictionaries that
    are too wide for one device. It divides ``num_workers``; the rows of a batch are shared out among
    num_workers / latent_shards such groups. Results do not depend on it but for the order of float additions."""
    min_workers: NonNegativeInt = 0
    """Elastic training: start with as many ranks as there is room for now, at least these and at most ``num_workers``,
    go on with fewer when a node is lost and with more when one comes. 0: always ``num_workers``."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """CPU cores (and torch threads) of a rank."""
    use_gpu: bool = False
    """One GPU a rank, NCCL; otherwise gloo."""
    max_failures: NonNegativeInt = 3
    """Restarts of the group after a rank's death, each from the last checkpoint."""
    blocks_ahead: NonNegativeInt = 0
    """Feeds ``live`` and ``tee``: units that may wait in Ray's object store for the slowest rank; 0: those of one
    window of the order and one more for each forward process."""

    @model_validator(mode="after")
    def _ranks_form_groups(self) -> Self:
        if self.num_workers % self.latent_shards:
            raise ValueError(f"latent_shards ({self.latent_shards}) must divide num_workers ({self.num_workers})")
        if self.min_workers > self.num_workers:
            raise ValueError(f"min_workers ({self.min_workers}) is more than num_workers ({self.num_workers})")
        if self.min_workers and self.latent_shards > 1:
            raise ValueError(
                f"min_workers lets Ray choose any number of ranks, of which latent_shards ({self.latent_shards}) may "
                "not be a divisor: set min_workers to 0, or latent_shards to 1"
            )
        return self


class TrainSpec(Spec):
    """Train dictionaries on a store."""

    kind: Literal["train"] = "train"
    """Discriminator."""
    name: Name = "train"
    """Name of this job; other jobs of a pipeline refer to it."""
    store: InputUrl | Annotated[dict[Name, InputUrl], Field(min_length=2)]
    """Store URL, or ``${NAME}`` of a collect job of the same pipeline. Several stores of one token table (of several
    models, or snapshots of one training) by names of your own: their rows are joined, and hook point H of the store N
    is ``N/H``."""
    dictionaries: list[DictionarySpec] = []
    """What to train; all are fed from one read."""
    sweep: list[Sweep] = []
    """More dictionaries, said in few words; one sweep or a list of them. They are put behind those of ``dictionaries``
    when the spec is read: all that comes after knows the long list only."""
    feed: Literal["stored", "follow", "live", "tee"] = "stored"
    """Where rows come from. ``stored``: a complete store. The others train while the collect job of ``store`` runs,
    the first epoch in the order in which rows are collected, mixed window by window: ``follow`` reads the store as it
    grows; ``live`` is handed the rows from memory, and no store is written; ``tee`` is handed them and the store is
    written, too. These three give the same dictionaries."""
    batch_rows: PositiveInt = 4096
    """Rows in one optimiser step, over all ranks."""
    num_tokens: NonNegativeInt = 0
    """Rows to train on, repeats counted; 0: ``num_epochs`` passes."""
    num_epochs: PositiveFloat = 1.0
    """Passes over the training rows where ``num_tokens`` is 0."""
    rows: RowFilter = RowFilter()
    """Rows left out."""
    order: RowOrder = RowOrder()
    """Shuffle."""
    schedule: Schedule = Schedule()
    """Learning rate over time."""
    normalise: Literal["mean_norm", "none"] = "mean_norm"
    """``mean_norm``: scale each hook point to a mean row norm of sqrt(d_model), by the store's statistics; of feeds
    other than ``stored`` by those of its first 16,384 rows."""
    max_gradient_norm: NonNegativeFloat = 1.0
    """Clip the gradient of each dictionary to this norm; 0: no clipping."""
    divergence: DivergenceCheck = DivergenceCheck()
    """When a dictionary is given up."""
    checkpoint_every_steps: NonNegativeInt = 200
    """Steps between checkpoints; 0: only at the end."""
    log_every_steps: PositiveInt = 10
    """Steps between lines of metrics.jsonl and TensorBoard."""
    held_out: HeldOut | None = None
    """Also measure on rows that training never sees; None: do not."""
    trackers: list[Annotated[Literal["tensorboard", "wandb"], Reach("tracker")]] = ["tensorboard"]
    """Where metrics go besides metrics.jsonl; ``wandb`` needs the extra of that name."""
    workers: TrainWorkers = TrainWorkers()
    """Resources."""
    output: OutputUrl
    """Folder of the results: ``NAME/dictionary.safetensors`` and ``NAME/dictionary.json`` for each dictionary."""

    @property
    def store_urls(self) -> list[str]:
        """Of the one store, or of all that are joined."""
        return [self.store] if isinstance(self.store, str) else list(self.store.values())

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, data: Any) -> Any:
        return expand(data)

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        if not self.dictionaries:
            raise ValueError("nothing to train: give dictionaries, or a sweep")
        names = [dictionary.name for dictionary in self.dictionaries]
        if len(set(names)) != len(names):
            raise ValueError(f"two dictionaries have one name: {names}")
        return self

    @model_validator(mode="after")
    def _elastic_feed_fits(self) -> Self:
        if self.workers.min_workers and self.feed in {"live", "tee"}:
            raise ValueError(
                f"feed {self.feed} hands its rows to a fixed number of ranks: set workers.min_workers to 0, or "
                "use feed: stored or follow"
            )
        return self

    @model_validator(mode="after")
    def _latents_can_be_sharded(self) -> Self:
        shards = self.workers.latent_shards
        if shards == 1:
            return self
        if self.feed in {"live", "tee"}:
            raise ValueError(
                f"feed {self.feed} hands every row to one rank, workers.latent_shards ({shards}) ranks need it: "
                "use feed: stored or follow, or latent_shards: 1"
            )
        for one in self.dictionaries:
            groups = one.groups if isinstance(one.groups, str) else "a list"
            unfit = {
                f"groups ({groups}) other than one": groups != "one",
                "optimiser muon, which mixes the latents of a whole matrix": isinstance(one.optimiser, Muon),
                "end_to_end, which runs whole dictionaries in the model": one.end_to_end is not None,
                f"{one.num_latents} latents, fewer than shards": one.num_latents < shards,
            }
            if found := [why for why, holds in unfit.items() if holds]:
                raise ValueError(
                    f"dictionary {one.name!r} cannot lie on {shards} ranks (workers.latent_shards): it has {found[0]}; "
                    "train it in a job with latent_shards: 1"
                )
        return self

    @model_validator(mode="after")
    def _feed_fits(self) -> Self:
        if self.feed == "stored":
            return self
        if not isinstance(self.store, str):
            raise ValueError(f"feed {self.feed} reads one store while it is collected, not several; use feed: stored")
        if self.rows.max_norm_multiple:
            raise ValueError(
                f"rows.max_norm_multiple needs the norms of all rows before training begins, which feed {self.feed} "
                "does not have: set it to 0, or use feed: stored"
            )
        if self.feed == "live" and not self.num_tokens and self.num_epochs > 1:
            raise ValueError(
                f"feed live keeps no row, so there is one epoch only; num_epochs is {self.num_epochs:g}: set it to 1 "
                "or less and collect more tokens, or use feed: tee or follow"
            )
        return self
