"""Job kind ``circuit``: the few nodes of a network that suffice for a task, and the weights that join them."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from schemas.fields import InputUrl, Name, OutputUrl, Spec
from schemas.grammar import TemplateName
from schemas.model import ModelSpec

TASKS: tuple[TemplateName, ...] = get_args(TemplateName)
"""All 20, in the order of the paper's table."""
NONSENSE = "nonsense"
"""The control: a rule that no text follows."""

Share = Annotated[float, Field(ge=0, le=1)]


class TaskSpec(Spec):
    """The pairs of prompts of all tasks."""

    pairs: PositiveInt = 512
    """Pairs that masks are searched on; each gives two prompts, one for each answer."""
    held_out_pairs: PositiveInt = 128
    """Further pairs, of another seed, on which losses are measured and circuits cut to the target."""
    context_lines: NonNegativeInt = 0
    """At most so many lines that belong to no task stand before a prompt."""
    begin: Literal["bos", "none"] = "bos"
    """``bos``: every prompt begins with the tokenizer's BOS token, as contexts of a store do."""
    seed: NonNegativeInt = 0
    """Of the pairs."""


class MaskSpec(Spec):
    """One search for the mask of a task: gradient descent on one number for each node. Defaults are the centres of
    table 2 of Gao et al. 2025, but for ``steps``, which it does not give."""

    steps: PositiveInt = 1000
    """Steps of AdamW."""
    batch_pairs: PositiveInt = 64
    """Pairs of prompts in a step."""
    learning_rate: PositiveFloat = 3e-3
    """At its highest."""
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises from 0; afterwards it falls linearly to 0."""
    node_weight: NonNegativeFloat = 1e-4
    """What a kept node adds to the loss (``k_coef``)."""
    initial_noise: NonNegativeFloat = 1e-2
    """Standard deviation of the mask's values at the start."""
    initial_bias: Annotated[float, Field(ge=-1, le=1)] = 0.1
    """Their mean; above 0 a node is kept."""
    weight_decay: NonNegativeFloat = 1e-3
    """Of AdamW."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the past in AdamW's mean of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Weight of the past in the mean of their squares."""
    temperature: PositiveFloat = 1.0
    """Of the sigmoid whose derivative stands in for that of the gate on the way back."""
    max_gradient_norm: PositiveFloat = 1.0
    """Longer gradients are cut to it."""


class SearchSpec(Spec):
    """How many masks are searched for each task."""

    number: PositiveInt = 1
    """Searches of each task; the circuit with the fewest edges counts. The first has the settings of ``mask`` as they
    are, each further one its own seed and settings drawn log-uniformly around them."""
    spread: Annotated[float, Field(ge=1)] = 3.0
    """A drawn setting (learning rate, node weight, noise, bias, weight decay, temperature) is at most so many times
    greater or smaller."""
    seed: NonNegativeInt = 0
    """Of the masks' first values, of the batches and of the drawn settings."""


class CircuitWorkers(Spec):
    """Resources. Never part of a fingerprint."""

    num_workers: NonNegativeInt = 0
    """Searches that run at the same time; 0: as many as the cluster has room for."""
    cpus_per_search: PositiveFloat = 1
    """Cores of one search. Their number decides in which order sums are taken, so the last bits of a result."""
    gpus_per_search: Annotated[float, Field(ge=0, le=1)] = 0
    """GPUs of one search."""


class CircuitSpec(Spec):
    """Find the circuits of tasks in a model."""

    kind: Literal["circuit"] = "circuit"
    """Discriminator."""
    name: Name = "circuit"
    """Name of this job."""
    model: ModelSpec
    """The network, which must have all eight locations of nodes (docs/circuits.md); ``path`` may be ``${NAME}`` of a
    train_model job of the same pipeline."""
    store: InputUrl | None = None
    """Store of the same model, with every location of every layer, whose means stand in for nodes that are left out;
    or ``${NAME}`` of a collect job of the same pipeline. Needed for ``ablation: mean``."""
    ablation: Literal["mean", "zero"] = "mean"
    """What a node that is left out is fixed at."""
    freeze_norm_scale: bool = False
    """Divide by the norms of the intact network in every RMSNorm, so that leaving out a node changes no others by
    scale."""
    tasks: Literal["all"] | Annotated[list[TemplateName], Field(min_length=1)] = "all"
    """Tasks by name, or all 20."""
    answers: Literal["single_token", "first_token"] = "single_token"
    """``single_token``: a task whose answers are not single tokens of the model's tokenizer is refused and reported so.
    ``first_token``: the first token of each answer counts, as long as they differ."""
    task: TaskSpec = TaskSpec()
    """The pairs of prompts."""
    mask: MaskSpec = MaskSpec()
    """One search."""
    search: SearchSpec = SearchSpec()
    """How many there are."""
    target_loss: PositiveFloat = 0.15
    """Cross-entropy between the two answers, in nats, that a circuit has to reach."""
    attribution: bool = True
    """Cut the nodes of greatest gradient attribution to the target as well, to compare with."""
    nonsense: bool = True
    """Search a task that follows a rule of no text as well: a mask that reaches the target there is made by the search
    and not found in the model."""
    workers: CircuitWorkers = CircuitWorkers()
    """Resources."""
    output: OutputUrl
    """Folder for ``circuits.json``, ``report.html`` and a folder of each search."""

    @model_validator(mode="after")
    def _means_come_from_a_store(self) -> Self:
        if self.ablation == "mean" and self.store is None:
            raise ValueError("ablation: mean needs a store, whose means it takes; give store, or ablation: zero")
        if self.ablation == "zero" and self.store is not None:
            raise ValueError("ablation: zero takes no means, so store would not be read; leave it out")
        if not isinstance(self.tasks, str) and len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks names one task twice: {self.tasks}")
        if self.model.kind != "causal_lm":
            raise ValueError(f"circuits need a model of kind causal_lm, model.kind is {self.model.kind!r}")
        return self
