"""``headworks plan``: what the user says of prices, rates and limits, and what the plan answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from schemas.fields import ByteSize, Spec

Price = Annotated[float, Field(ge=0)] | None
"""In the currency; None: not known, and what needs it is left out."""


class Prices(Spec):
    """What things cost. There are no defaults: prices differ by place, contract and year. GB are 10**9 bytes."""

    currency: str = ""
    """How to name the unit of all prices, for example EUR."""
    storage_gb_month: Price = None
    """Keeping one GB for a month."""
    put_thousand: Price = None
    """A thousand writing requests."""
    get_thousand: Price = None
    """A thousand reading requests."""
    egress_gb: Price = None
    """Moving one GB from the storage to the machines that train; 0 within one region of most providers."""
    device_hour: Price = None
    """One GPU (or machine) for an hour."""


class Rates(Spec):
    """How fast the job will run; what is not given is not planned, or measured with ``--measure``."""

    tokens_per_s: PositiveFloat | None = None
    """Tokens collected per second, over all replicas."""
    flop_per_s: PositiveFloat | None = None
    """Floating-point operations per second that one device really reaches, not its peak; used without
    ``tokens_per_s``."""
    num_devices: PositiveInt = 1
    """GPUs (or machines) that collect at the same time, and are paid for."""
    storage_bytes_per_s: PositiveFloat | None = None
    """What the storage takes per second from all replicas together; a collection cannot be faster than that."""


class Limits(Spec):
    """What the job must not exceed."""

    memory: ByteSize | None = None
    """Memory of the device that a rank trains on; None: that of this machine."""
    ranks_per_node: PositiveInt | None = None
    """Ranks that share that memory; None: all of them, one rank with GPUs."""


class PlanAssumptions(Spec):
    """The file of ``headworks plan --prices``."""

    prices: Prices = Prices()
    """What things cost."""
    rates: Rates = Rates()
    """How fast they go."""
    limits: Limits = Limits()
    """What there is."""
    months: NonNegativeFloat = 1.0
    """How long the store is kept."""


class Count(Spec):
    """A number, and how it is known."""

    value: NonNegativeInt
    """The number."""
    basis: Literal["exact", "estimated"]
    """``exact``: it will be this. ``estimated``: about this."""
    standard_error: NonNegativeFloat = 0.0
    """Of an estimate, as a share of it; 0 where it is not known."""


class StorePlan(Spec):
    """A store that a collect job makes or completes. What is there already is not counted but in ``total``."""

    rows: Count
    """Rows of the whole store."""
    missing_rows: Count
    """Rows that are to be computed, a row once for each pass."""
    units: NonNegativeInt
    """Units to be computed, over all passes."""
    hook_points: dict[str, int]
    """hook point -> d_model of those that are to be computed."""
    bytes_per_hook_point: dict[str, int]
    """hook point -> bytes that will be written for it."""
    size_bytes: Count
    """Bytes that will be written, tokens and ledger included."""
    total_bytes: Count
    """Bytes of the store then."""
    objects: NonNegativeInt
    """Objects that will be written."""
    object_bytes: dict[str, int]
    """hook point -> bytes of the object of a whole unit."""
    puts: NonNegativeInt
    """Writing requests."""
    gets: NonNegativeInt
    """Reading requests: a look at the ledger for each unit."""
    lists: NonNegativeInt
    """Listings, of a thousand keys each."""
    flop: NonNegativeFloat
    """Floating-point operations of the forwards, padding left out."""
    unit_memory_bytes: NonNegativeInt
    """What a worker holds of rows at a time, beside its model; with gradients also what a batch of ``batch_tokens``
    keeps for the way back."""


class TimePlan(Spec):
    """How long a collection takes."""

    hours: NonNegativeFloat
    """From the first forward to the manifest."""
    device_hours: NonNegativeFloat
    """Hours of all devices together."""
    tokens_per_s: PositiveFloat
    """Over all replicas."""
    basis: Literal["given", "measured", "operations", "storage"]
    """Where the rate is from: given, measured here, from given operations per second, or what the storage takes."""


class ReusePlan(Spec):
    """Whether keeping the activations pays, against computing them anew for each pass of a training over the rows."""

    collect: NonNegativeFloat
    """Computing all rows of the store once."""
    write: NonNegativeFloat
    """Writing requests."""
    keep: NonNegativeFloat
    """The whole store, for ``months``."""
    read: NonNegativeFloat
    """Reading all of it once: requests and egress."""
    break_even_reads: PositiveInt | None
    """Passes over the rows from which on storing is the cheaper; None: never, since reading costs as much as computing.
    Collecting is paid for once with a store, and once for each pass without."""


class TrainPlan(Spec):
    """A train job."""

    rows_per_epoch: Count
    """Rows that the filter leaves of the training split."""
    epochs: NonNegativeFloat
    """Passes over them."""
    steps: NonNegativeInt
    """Optimiser steps."""
    read_bytes: NonNegativeInt
    """Activations read, by all ranks: each reads every chunk that holds a row of its share."""
    gets: NonNegativeInt
    """Reading requests, where the store is remote."""
    dictionary_bytes: dict[str, int]
    """dictionary -> weights, gradients and what the optimiser remembers, on one rank."""
    memory_bytes: NonNegativeInt
    """The same of all dictionaries on one rank."""
    window_bytes: NonNegativeInt
    """Rows that a rank holds while it reads: the window in use and the next."""
    block_bytes: NonNegativeInt = 0
    """Feeds ``live`` and ``tee``: rows that may wait in Ray's object store, with one forward process; each further one
    adds a unit unless ``workers.blocks_ahead`` says how many."""


class ModelPlan(Spec):
    """A train_model job."""

    parameters: NonNegativeInt
    """Weights that are trained; of a tokenizer that is yet to be made, for the most tokens that it may have."""
    tokens: NonNegativeInt
    """Tokens that are left to train on, repeats counted."""
    steps: NonNegativeInt
    """Optimiser steps that are left."""
    flop: NonNegativeFloat
    """Floating-point operations of these steps: 6 for each weight of a matrix product and 12 for each layer, channel
    of its heads and place of the context, for each token."""
    hours: NonNegativeFloat | None
    """Of these steps; None where ``rates.flop_per_s`` (of one rank's device) is not given."""
    snapshots: NonNegativeInt
    """Model folders, the one at the end included."""
    size_bytes: NonNegativeInt
    """Bytes that are left at the end: model folders and two checkpoints, token table apart."""
    memory_bytes: NonNegativeInt
    """Weights, gradients, what the optimiser remembers and the logits, on one rank; other activations come on top."""


class CircuitPlan(Spec):
    """A circuit job; results that are there already are counted as well."""

    searches: NonNegativeInt
    """Over all tasks that the tokenizer can pose, the control among them."""
    nodes: NonNegativeInt
    """Of the network."""
    steps: NonNegativeInt
    """Of all searches."""
    tokens: NonNegativeInt
    """That go through the network there and back in these steps, padding to a task's longest prompt counted: at
    most."""
    measuring_tokens: NonNegativeInt
    """That go through it forward alone, while rankings are cut and circuits measured: at most."""
    flop: NonNegativeFloat
    """Floating-point operations of all of these: 2 for each weight of a block and 4 for each layer, channel of its
    heads and place of the longest prompt, for each token and way."""
    hours: NonNegativeFloat | None
    """Of ``workers.num_workers`` searches at a time (0: of one); None where ``rates.flop_per_s`` is not given."""
    memory_bytes: NonNegativeInt
    """Of one search: the weights of the blocks, and what a step keeps of each node for the way back; attention weights
    come on top."""


class JobPlan(Spec):
    """One job."""

    name: str
    """Name of the job."""
    kind: str
    """Its kind."""
    output: str
    """Where it writes."""
    store: StorePlan | None = None
    """Of a collect job."""
    time: TimePlan | None = None
    """Of a collect job whose rate is known."""
    reuse: ReusePlan | None = None
    """Of a collect job where rate and prices are known."""
    train: TrainPlan | None = None
    """Of a train job."""
    model: ModelPlan | None = None
    """Of a train_model job."""
    circuit: CircuitPlan | None = None
    """Of a circuit job."""
    money: NonNegativeFloat | None = None
    """What the job itself costs, with the store kept for ``months``; None where a price or the rate is not known."""
    notes: list[str] = []
    """What could not be planned, and why."""


class Plan(Spec):
    """All jobs and their sums."""

    jobs: list[JobPlan]
    """In order."""
    size_bytes: NonNegativeInt
    """Bytes that will be written."""
    objects: NonNegativeInt
    """Objects that will be written."""
    hours: NonNegativeFloat | None
    """Of the collections; None where one is not known."""
    money: NonNegativeFloat | None
    """Of all jobs whose money is known; None of none."""
    currency: str
    """Of the money."""
