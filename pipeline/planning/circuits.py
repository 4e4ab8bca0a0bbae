"""What a circuit job will compute: passes over prompts, whose tokens are counted by posing the tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.circuits.circuit import posed_pairs
from pipeline.circuits.cut import most_looks
from pipeline.circuits.job import tasks_of
from pipeline.circuits.means import model_tokenizer
from pipeline.circuits.nodes import Nodes
from pipeline.circuits.tasks.pairs import Pairs
from pipeline.networks.config import MODEL_TYPE
from schemas.circuit import CircuitSpec
from schemas.errors import SpecError
from schemas.network import NetworkSpec
from schemas.plan import CircuitPlan, JobPlan, PlanAssumptions

_FLOAT_BYTES = 4
_OWN_AND_GATED = 2
"""Copies of a node's activations that a step keeps for the way back."""


def plan_circuits(spec: CircuitSpec, assumptions: PlanAssumptions) -> JobPlan:
    """Reads the tokenizer and the configuration of the model, no weights.

    Raises:
        MissingError, ModelError: the tokenizer is not there.
    """
    notes = []
    network = _network(spec)
    if network is None:
        notes.append(f"the work is not planned: {spec.model.path} is not the folder of a decoder that is made here")
        return JobPlan(name=spec.name, kind=spec.kind, output=spec.output, notes=notes)
    found, refused = _posed(spec)
    if refused:
        notes.append(f"the tokenizer cannot pose {', '.join(refused)}: reported so, and not searched")
    rate = assumptions.rates.flop_per_s
    if rate is None and found:
        notes.append("the hours are not planned: give --flop-per-s, what one device really reaches")
    planned = _work(spec, network, found, rate)
    return JobPlan(name=spec.name, kind=spec.kind, output=spec.output, circuit=planned, notes=notes)


def _network(spec: CircuitSpec) -> NetworkSpec | None:
    """Of the decoder; None of another model, which the job will refuse."""
    file = Path(spec.model.path, "config.json")
    facts = json.loads(file.read_text()) if file.exists() else {}
    return NetworkSpec.model_validate(facts["network"]) if facts.get("model_type") == MODEL_TYPE else None


def _posed(spec: CircuitSpec) -> tuple[list[tuple[Pairs, Pairs]], list[str]]:
    """Pairs of the search and held-out ones of each task, and the tasks that cannot be posed."""
    tokenizer, found, refused = model_tokenizer(spec), [], []
    for task in tasks_of(spec):
        try:
            found.append(posed_pairs(spec, tokenizer, task))
        except SpecError:
            refused.append(task)
    return found, refused


def _work(
    spec: CircuitSpec, network: NetworkSpec, posed: Sequence[tuple[Pairs, Pairs]], rate: float | None
) -> CircuitPlan:
    nodes, mask = Nodes(network).number, spec.mask
    weights = network.layers * (4 * network.d_model * network.heads * network.head_width)
    weights += network.layers * 2 * network.d_model * network.neurons
    step_tokens = [2 * min(mask.batch_pairs, len(pairs)) * _longest(pairs) for pairs, _ in posed]
    look_tokens = [2 * min(len(one), len(other)) * (_longest(one) + _longest(other)) for one, other in posed]
    searched = spec.search.number * mask.steps * sum(step_tokens)
    # Intact, without the circuit, and while the ranking is cut; of the first search also the rival's.
    looks = spec.search.number * (most_looks(nodes) + 2) + spec.attribution * most_looks(nodes)
    looked = looks * sum(look_tokens)
    longest = max((_longest(pairs) for both in posed for pairs in both), default=0)
    forward = 2 * weights + 4 * network.layers * network.heads * network.head_width * longest
    # The way back goes through activations alone, which costs what the way there does.
    flop = float(forward) * (2 * searched + looked)
    at_once = min(spec.workers.num_workers or 1, max(len(posed) * spec.search.number, 1))
    rows = max(step_tokens, default=0)
    return CircuitPlan(
        searches=len(posed) * spec.search.number,
        nodes=nodes,
        steps=len(posed) * spec.search.number * mask.steps,
        tokens=searched,
        measuring_tokens=looked,
        flop=flop,
        hours=None if rate is None else flop / rate / at_once / 3600,
        memory_bytes=_FLOAT_BYTES * (weights + _OWN_AND_GATED * rows * nodes),
    )


def _longest(pairs: Pairs) -> int:
    return int(pairs.token_ids.shape[1])
