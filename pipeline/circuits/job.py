"""The circuit job cut into searches, and their results put together.

Each search is a file of its own below ``searches``, written once it is complete, and taken over by any later run of the
same job over the same facts. ``circuits.json`` and ``report.html`` are made of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.circuits.circuit import Progress, find_circuit
from pipeline.circuits.means import model_tokenizer, open_store, read_means
from pipeline.circuits.network import MaskedNetwork, load_decoder
from pipeline.circuits.nodes import Nodes
from pipeline.evaluation.belonging import version
from pipeline.models.identity import model_identity
from pipeline.report.circuits import render_circuits
from pipeline.store.objects import Objects
from schemas.circuit import NONSENSE, TASKS, CircuitSpec
from schemas.fingerprint import fingerprint

RESULT = "circuits.json"
REPORT = "report.html"

DEFINITIONS = {
    "Node": "A channel at one of eight locations of a block: read by attention or MLP behind its norm, a query, key or "
    "value, a neuron, or written to the residual stream. The same nodes are kept for all tokens and prompts.",
    "Edge": "A weight other than 0 that joins two kept nodes, or a token of a prompt to a channel that a kept node "
    "reads, or a channel that a kept node writes to an answer. Between blocks channels of the stream are the same "
    "channels, which is no edge.",
    "Edges at target": "Edges at exactly the target loss: interpolated in the loss between the circuit, which has at "
    "most the target, and the same circuit less its last node, which has more.",
    "Loss": "Cross-entropy between the two answers in nats on held-out prompts, after the margin of their logits is "
    "scaled and shifted by what 16 steps of LBFGS find on prompts of the search.",
    "Without the circuit": "The circuit's nodes are left out and all others kept. A loss of 0.693 (log 2) says that "
    "nothing of the answer is left.",
    "Attribution": "The nodes of greatest gradient attribution in place of the searched ones, cut to the same target.",
    "Nonsense": "The control: a rule of no text. A circuit there is made by the search and not found in the model.",
}


@dataclass(frozen=True)
class Search:
    """One unit of the job."""

    task: str
    number: int

    @property
    def key(self) -> str:
        """Of its file."""
        return f"searches/{self.task}.{self.number}.json"


def searches(spec: CircuitSpec) -> list[Search]:
    """In the order of the tasks; the control last."""
    return [Search(task, number) for task in tasks_of(spec) for number in range(spec.search.number)]


def tasks_of(spec: CircuitSpec) -> list[str]:
    """Names, the control last."""
    named: Sequence[str] = TASKS if isinstance(spec.tasks, str) else spec.tasks
    return [*named, NONSENSE] if spec.nonsense else [*named]


def identity(spec: CircuitSpec) -> dict[str, Any]:
    """What decides every search of the job; of one search its task and number besides.

    Raises:
        HeadworksError: the store is of another model or tokenizer, or lacks a location.
    """
    tokenizer = model_tokenizer(spec)
    asked = spec.model_dump(
        mode="json", include={"ablation", "freeze_norm_scale", "answers", "task", "mask", "target_loss", "attribution"}
    )
    facts = {
        "spec": asked,
        "search": {"spread": spec.search.spread, "seed": spec.search.seed},
        "model": model_identity(spec.model.model_copy(update={"dtype": "float32"})),
        "tokenizer": tokenizer.digest,
        "store": None,
        "version": version(),
    }
    if spec.store is None:
        return facts
    store = open_store(spec, tokenizer)
    read_means(store, Nodes(load_decoder(spec.model).config.spec))
    return facts | {"store": {"fingerprint": store.fingerprint, "rows": store.num_rows}}


def search_fingerprint(facts: Mapping[str, Any], search: Search) -> str:
    """Two searches of one fingerprint have one result."""
    return fingerprint({**facts, "task": search.task, "number": search.number})


def finished(spec: CircuitSpec, facts: Mapping[str, Any], search: Search) -> dict[str, Any] | None:
    """The result that an earlier run left, or None."""
    output = Objects(spec.output)
    if not output.exists(search.key):
        return None
    try:
        found: dict[str, Any] = json.loads(output.read(search.key))
    except ValueError:
        return None
    return found if found.get("fingerprint") == search_fingerprint(facts, search) else None


def run_search(spec: CircuitSpec, facts: Mapping[str, Any], search: Search, progress: Progress) -> dict[str, Any]:
    """Compute one search and keep its result.

    Raises:
        DivergenceError: the loss is not finite.
        HeadworksError: model or store are not those of ``facts`` any more.
    """
    tokenizer = model_tokenizer(spec)
    decoder = load_decoder(spec.model)
    nodes = Nodes(decoder.config.spec)
    means = torch.zeros(nodes.number) if spec.store is None else read_means(open_store(spec, tokenizer), nodes)
    network = MaskedNetwork(decoder, means, freeze_norm_scale=spec.freeze_norm_scale)
    found = find_circuit(spec, network, tokenizer, search.task, search.number, progress)
    found = {"fingerprint": search_fingerprint(facts, search), **found}
    Objects(spec.output).write(search.key, _json(found))
    return found


def conclude(spec: CircuitSpec, facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the results of all searches, in their order, together; write the report and, last, ``circuits.json``."""
    tasks = {task: _of_task([one for one in results if one["task"] == task]) for task in tasks_of(spec)}
    figures = {
        "format": 1,
        "fingerprint": fingerprint({**facts, "searches": [search.key for search in searches(spec)]}),
        "identity": dict(facts),
        "model": spec.model.path,
        "store": spec.store,
        "target_loss": spec.target_loss,
        "definitions": DEFINITIONS,
        "tasks": {name: {key: value for key, value in one.items() if key != "circuit"} for name, one in tasks.items()},
        "summary": summary_of(tasks),
    }
    output = Objects(spec.output)
    output.write(REPORT, render_circuits(spec.name, figures, tasks).encode())
    output.write(RESULT, _json(figures))
    return figures


def summary_of(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Over all tasks but the control. A mean over those that reach the target says nothing of the others, so they are
    named beside it."""
    real = {name: one for name, one in tasks.items() if name != NONSENSE}
    found = [one["edges_at_target"] for one in real.values() if one["status"] == "found"]
    rivals = [one["attribution"] for one in real.values() if one.get("attribution", {}).get("status") == "found"]
    return {
        "edges_geometric_mean": geometric_mean(found),
        "nodes_geometric_mean": geometric_mean([one["nodes"] for one in real.values() if one["status"] == "found"]),
        "attribution_edges_geometric_mean": geometric_mean([one["edges_at_target"] for one in rivals]),
        "found": [name for name, one in real.items() if one["status"] == "found"],
        "missed": [name for name, one in real.items() if one["status"] == "missed"],
        "refused": [name for name, one in real.items() if one["status"] == "refused"],
        "nonsense": tasks.get(NONSENSE, {}).get("status"),
    }


def geometric_mean(counts: Sequence[float]) -> float | None:
    """None of no counts; a count of 0 counts as 1, whose logarithm is 0."""
    return math.exp(sum(math.log(max(count, 1.0)) for count in counts) / len(counts)) if counts else None


def _of_task(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The search with the fewest edges, with what all of them came to."""
    first = results[0]
    if first["status"] == "refused":
        return dict(first)
    found = [one for one in results if one["status"] == "found"]
    best = min(found, key=lambda one: (one["edges_at_target"], one["search"])) if found else first
    tried = [{key: one[key] for key in ("search", "status", "nodes", "edges_at_target", "settings")} for one in results]
    rival = {"attribution": first["attribution"]} if "attribution" in first else {}
    return {**best, **rival, "searches": tried}


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
