"""One search of one task, from its pairs of prompts to the figures of its circuit.

1. pairs of prompts in the model's tokens; a task that the tokenizer cannot pose is refused
2. search of a mask                                                  search
3. the mask's ranking cut to the target loss                         cut
4. edges of the circuit, at the target                               edges
5. the network without the circuit (necessity); of the first search of a task also the nodes of greatest gradient
   attribution, cut to the same target
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline.circuits.attribution import attribution
from pipeline.circuits.cut import Cut, Examination, Kept, cut, interpolated, ranked
from pipeline.circuits.edges import Edges
from pipeline.circuits.network import MaskedNetwork
from pipeline.circuits.nodes import Nodes
from pipeline.circuits.search import find_mask, search_seed, settings_of
from pipeline.circuits.tasks.pairs import Pairs, make_pairs
from pipeline.tokens.tokenizer import Tokenizer
from schemas.circuit import CircuitSpec
from schemas.errors import SpecError

MOST_EDGES = 2000
"""Edges that are listed one by one, the strongest; all are counted."""

Progress = Callable[[int, int], None]
"""Called with the steps that are done, and of how many."""


def find_circuit(
    spec: CircuitSpec, network: MaskedNetwork, tokenizer: Tokenizer, task: str, number: int, progress: Progress
) -> dict[str, Any]:
    """What ``searches/TASK.NUMBER.json`` says of search ``number`` of a task. ``status``: ``found``, ``missed`` where
    not even all nodes reach the target loss, ``refused`` where the tokenizer cannot pose the task.

    Raises:
        DivergenceError: the loss is not finite.
    """
    named = {"task": task, "search": number}
    try:
        searched, held_out = (pairs.to(network.device) for pairs in posed_pairs(spec, tokenizer, task))
    except SpecError as error:
        return {**named, "status": "refused", "reason": str(error)}
    settings = settings_of(spec.mask, spec.search, number)
    values = find_mask(
        network,
        searched,
        settings,
        seed=search_seed(spec.search, task, number),
        step=lambda done: progress(done, settings.steps),
    )
    fitted = searched.take(torch.arange(min(len(searched), len(held_out))))
    examination = Examination(network, fitted, held_out)
    edges = _edges(network, searched, held_out)
    found = cut(ranked(values), spec.target_loss, examination.of, guess=int((values > 0).sum()))
    record = {
        **named,
        "settings": settings.model_dump(mode="json"),
        "intact": examination.of(None).as_json(),
        "open_gates": int((values > 0).sum()),
        **_figures(found, spec.target_loss, edges, network.nodes),
        "without": examination.of(~found.kept).as_json(),
        "circuit": _drawn(found.kept, edges, network.nodes, tokenizer) if found.reached else None,
    }
    if spec.attribution and number == 0:
        ranking = ranked(attribution(network, searched))
        rival = cut(ranking, spec.target_loss, examination.of, guess=int(found.kept.sum()))
        record["attribution"] = _figures(rival, spec.target_loss, edges, network.nodes)
    return record


def posed_pairs(spec: CircuitSpec, tokenizer: Tokenizer, task: str) -> tuple[Pairs, Pairs]:
    """The pairs of a task that a mask is searched on, and those that are held out, on the CPU.

    Raises:
        SpecError: as ``make_pairs``.
    """
    return (
        make_pairs(task, tokenizer, spec.task, "search", spec.answers),
        make_pairs(task, tokenizer, spec.task, "held_out", spec.answers),
    )


def _edges(network: MaskedNetwork, searched: Pairs, held_out: Pairs) -> Edges:
    """Of the tokens that the prompts have, padding not among them."""
    tokens: set[int] = set()
    for pairs in (searched, held_out):
        steps = torch.arange(pairs.token_ids.shape[1], device=pairs.token_ids.device)
        tokens |= set(pairs.token_ids[steps < pairs.lengths[:, None]].tolist())
    answers = {int(token) for pairs in (searched, held_out) for token in pairs.answers.flatten().tolist()}
    return Edges(network.decoder, network.nodes, prompt_tokens=sorted(tokens), answers=sorted(answers))


def _figures(found: Cut, target: float, edges: Edges, nodes: Nodes) -> dict[str, Any]:
    """Counts of a circuit; None in place of edges where the target is missed."""
    figures: dict[str, Any] = {
        "status": "found" if found.reached else "missed",
        "nodes": int(found.kept.sum()),
        "measured": found.measured.as_json(),
    }
    if not found.reached:
        return figures | {"edges": None, "edges_at_target": None}
    by_matrix = edges.by_matrix(found.kept)
    return figures | {
        "nodes_by_location": nodes.by_location(found.kept),
        "edges": sum(by_matrix.values()),
        "edges_by_matrix": by_matrix,
        "edges_at_target": interpolated(found, target, edges.count),
        "with_one_less": None if found.fewer is None else found.fewer[1].as_json(),
    }


def _drawn(kept: Kept, edges: Edges, nodes: Nodes, tokenizer: Tokenizer) -> dict[str, Any]:
    """Nodes and the strongest edges, by names that need no numbering."""
    listed = []
    for node in np.flatnonzero(kept):
        place, channel = nodes.where(int(node))
        head = nodes.head(place, channel)
        listed.append(
            {"node": int(node), "layer": place.layer, "location": place.location, "channel": channel, "head": head}
        )
    strongest = edges.strongest(kept, MOST_EDGES)
    tokens = {edge.source for edge in strongest if edge.matrix == "embedding"}
    tokens |= {edge.target for edge in strongest if edge.matrix == "unembedding"}
    order = sorted(tokens)
    return {
        "nodes": listed,
        "edges": [[edge.matrix, edge.source, edge.target, round(edge.weight, 6)] for edge in strongest],
        "tokens": dict(zip(map(str, order), tokenizer.pieces(order), strict=True)),
    }
