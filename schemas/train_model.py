"""Job kind ``train_model``: a language model of one's own, with snapshots from its first step on."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from schemas.corpus import TokensSpec
from schemas.fields import Name, OutputUrl, Spec
from schemas.network import NetworkSpec
from schemas.optimiser import Decay
from schemas.reach import Reach
from schemas.tokenizer import BytePairs, OwnTokenizer
from schemas.weight_sparsity import WeightSparsitySpec

Share = Annotated[float, Field(ge=0, le=1)]

SNAPSHOTS = "snapshots"
"""Folder of the snapshots in the output."""
MODEL = "model"
"""Folder of the trained model in the output."""
TOKENIZER = "tokenizer"
"""Folder of the model's tokenizer in the output."""


class AdamW(Spec):
    """Adam with weight decay beside the gradient (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    learning_rate: PositiveFloat = 1e-3
    """The highest of the schedule."""
    beta1: Decay = 0.9
    """Weight of the past in the running mean of gradients."""
    beta2: Decay = 0.95
    """Weight of the past in the running mean of their squares."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root of the latter."""
    weight_decay: NonNegativeFloat = 0.1
    """Share of a weight, times the learning rate, that it loses at each step: of matrices and embeddings, not of
    biases, norms and the bigram table."""
    max_gradient_norm: NonNegativeFloat = 1.0
    """Clip the gradient of all weights together to this norm; 0: no clipping. With ``sparsity`` its ``gradient`` does
    that in its own way, and this is not used."""


class ModelSchedule(Spec):
    """Learning rate over the run: linear warm-up, then a decay."""

    warmup_fraction: Share = 0.01
    """Share of all steps over which the rate rises from 0."""
    decay: Literal["linear", "cosine", "none"] = "linear"
    """How it falls from then on to ``final_share`` at the end."""
    final_share: Share = 0.0
    """Of the highest rate, at the end."""


class LogSpaced(Spec):
    """Steps at equal ratios: 0, ``first`` and on to the last step, rounded to different whole numbers, so that there
    may be fewer than asked for."""

    count: Annotated[int, Field(ge=2, le=1024)] = 16
    """Snapshots after step 0."""
    first: PositiveInt = 1
    """The step of the first of them."""


class HeldOutText(Spec):
    """The loss on contexts of held-out documents, ``held_out_loss`` beside that of training. It does not change what
    is trained."""

    num_tokens: PositiveInt = 16_384
    """How many, at most: the first contexts of the table's held-out split."""
    evaluate_every_steps: PositiveInt = 200
    """Steps between evaluations; the last step has one in any case, and so has step 0."""


class ModelTrainWorkers(Spec):
    """Resources of training a model. Never part of a fingerprint."""

    num_workers: PositiveInt = 1
    """Ranks. Each has the whole model and runs its share of every batch; results do not depend on their number but for
    the order of float additions."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """CPU cores (and torch threads) of a rank."""
    use_gpu: bool = False
    """One GPU a rank, NCCL; otherwise gloo."""
    max_failures: NonNegativeInt = 3
    """Restarts of the group after a rank's death, each from the last checkpoint."""


class TrainModelSpec(Spec):
    """Train a language model from random weights, keeping snapshots that collect jobs take as models."""

    kind: Literal["train_model"] = "train_model"
    """Discriminator."""
    name: Name = "train_model"
    """Name of this job; other jobs of a pipeline refer to it."""
    network: NetworkSpec = NetworkSpec()
    """What is trained."""
    tokens: TokensSpec
    """The corpus and how it is packed. ``tokenizer: model`` means one that is made from the corpus, see ``tokenizer``
    below; the table is in ``tokens`` in the output unless ``output`` says otherwise."""
    tokenizer: OwnTokenizer = BytePairs()
    """How the model's own tokenizer is made; not used where ``tokens.tokenizer`` names one that exists."""
    steps: PositiveInt
    """Optimiser steps."""
    batch_tokens: PositiveInt = 8192
    """Tokens in one step over all ranks, a multiple of ``tokens.packing.context_length``: a batch is this many tokens'
    worth of whole contexts. Contexts are gone through in a new order each epoch; those that make no whole batch at the
    end of an epoch are left out of it."""
    forward_tokens: NonNegativeInt = 0
    """Tokens of a rank that go through the network at a time; gradients add up over them. 0: its whole share."""
    seed: NonNegativeInt = 0
    """Of the initial weights and of the order of contexts."""
    optimiser: AdamW = AdamW()
    """How gradients move weights."""
    schedule: ModelSchedule = ModelSchedule()
    """Learning rate over time."""
    sparsity: WeightSparsitySpec | None = None
    """Keep most weights at 0; None: dense."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16``: matrix products in bfloat16 (torch.autocast); weights, gradients and optimiser stay float32."""
    snapshots: LogSpaced | list[NonNegativeInt] = LogSpaced()
    """After which steps the model is kept, 0 being the random weights: ``snapshots/stepN`` in the output."""
    held_out: HeldOutText | None = HeldOutText()
    """Also measure the loss on documents that training never sees; None: do not."""
    checkpoint_every_steps: NonNegativeInt = 200
    """Steps between checkpoints; 0: only at the end."""
    log_every_steps: PositiveInt = 10
    """Steps between lines of metrics.jsonl and TensorBoard."""
    trackers: list[Annotated[Literal["tensorboard", "wandb"], Reach("tracker")]] = ["tensorboard"]
    """Where metrics go besides metrics.jsonl; ``wandb`` needs the extra of that name."""
    workers: ModelTrainWorkers = ModelTrainWorkers()
    """Resources."""
    output: OutputUrl
    """Folder of the results, on a disk that all ranks see: ``snapshots/stepN`` and ``model``, each a model folder."""

    @property
    def batch_contexts(self) -> int:
        """Contexts of a batch."""
        return self.batch_tokens // self.tokens.packing.context_length

    @property
    def snapshot_steps(self) -> list[int]:
        """Steps after which there is a snapshot, ascending."""
        if isinstance(self.snapshots, list):
            return sorted(self.snapshots)
        first, ratio = self.snapshots.first, self.steps / self.snapshots.first
        last = self.snapshots.count - 1
        return sorted({0, *(round(first * ratio ** (index / last)) for index in range(last + 1))})

    @model_validator(mode="after")
    def _contexts_fit(self) -> Self:
        length = self.tokens.packing.context_length
        if self.tokens.corpus.format == "images":
            raise ValueError("a language model reads text, the corpus has images: use another corpus.format")
        if length > self.network.context_length:
            raise ValueError(
                f"tokens.packing.context_length ({length}) is more than network.context_length "
                f"({self.network.context_length}): lower the one or raise the other"
            )
        if self.batch_tokens % length:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) is not a multiple of tokens.packing.context_length ({length})"
            )
        if self.forward_tokens % length:
            raise ValueError(
                f"forward_tokens ({self.forward_tokens}) is not a multiple of tokens.packing.context_length ({length})"
            )
        if self.workers.num_workers > self.batch_contexts:
            raise ValueError(
                f"workers.num_workers ({self.workers.num_workers}) is more than the contexts of a batch "
                f"({self.batch_contexts}): lower it, or raise batch_tokens"
            )
        return self

    @model_validator(mode="after")
    def _snapshots_are_reached(self) -> Self:
        if isinstance(self.snapshots, list) and len(set(self.snapshots)) != len(self.snapshots):
            raise ValueError(f"snapshots names one step twice: {self.snapshots}")
        highest = max(self.snapshots, default=0) if isinstance(self.snapshots, list) else self.snapshots.first
        if highest > self.steps:
            raise ValueError(
                f"snapshots has step {highest}, but steps is {self.steps}: lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _there_is_held_out_text(self) -> Self:
        if self.held_out is not None and not self.tokens.held_out_fraction:
            raise ValueError(
                "held_out measures on documents that were held out, and tokens.held_out_fraction is 0: raise it, or "
                "set held_out: null"
            )
        return self
