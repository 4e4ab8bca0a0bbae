"""The planted circuit is found exactly, is needed, and no circuit of its size makes sense of nonsense."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.circuits.attribution import attribution
from pipeline.circuits.circuit import find_circuit
from pipeline.circuits.network import MaskedNetwork
from pipeline.circuits.planted import CIRCUIT, NUM_EDGES, TASK
from pipeline.circuits.tasks.pairs import make_pairs
from pipeline.tokens.tokenizer import Tokenizer
from schemas.circuit import NONSENSE, CircuitSpec

Find = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def find(network: MaskedNetwork, tokenizer: Tokenizer) -> Find:
    def run(task: str, number: int = 0, **changes: Any) -> dict[str, Any]:
        spec = CircuitSpec.model_validate(
            {
                "model": {"path": "planted"}, "ablation": "zero", "output": "out",
                "mask": {"steps": 100, "batch_pairs": 32}, "task": {"pairs": 256}, **changes,
            }
        )  # fmt: skip
        return find_circuit(spec, network, tokenizer, task, number, lambda *_: None)

    return run


@pytest.fixture(scope="module")
def found(find: Find) -> dict[str, Any]:
    return find(TASK)


def test_exactly_the_planted_nodes_are_found(found: dict[str, Any]) -> None:
    assert found["status"] == "found"
    nodes = {(node["layer"], node["location"], node["channel"]) for node in found["circuit"]["nodes"]}
    assert nodes == CIRCUIT
    assert found["measured"]["loss"] <= 0.15 < found["with_one_less"]["loss"]


def test_edges_are_the_planted_weights(found: dict[str, Any]) -> None:
    counts = dict(found["edges_by_matrix"])
    assert counts.pop("unembedding") == 2
    # A sign for every token of the prompts, and the two that open a string.
    assert counts.pop("embedding") == len({edge[1] for edge in found["circuit"]["edges"] if edge[0] == "embedding"}) + 2
    assert counts == {"W_Q": 0, "W_K": 1, "W_V": 1, "W_O": 1, "W_in": 2, "W_out": 2}
    assert sum(counts.values()) == NUM_EDGES
    assert found["edges"] - 1 < found["edges_at_target"] <= found["edges"]


def test_without_the_circuit_nothing_of_the_task_is_left(found: dict[str, Any]) -> None:
    assert found["intact"]["raw_loss"] < 0.02
    assert found["without"]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert found["without"]["accuracy"] == pytest.approx(0.5, abs=0.02)


def test_attribution_is_cut_to_the_same_target(found: dict[str, Any]) -> None:
    assert found["attribution"]["status"] == "found"
    assert found["attribution"]["nodes"] >= len(CIRCUIT)


def test_nonsense_is_not_reached_with_as_many_nodes(find: Find) -> None:
    control = find(NONSENSE)
    assert control["status"] == "missed" or control["nodes"] > len(CIRCUIT)


@pytest.mark.slow
def test_a_search_gives_the_same_again_and_another_seed_another_mask(find: Find, found: dict[str, Any]) -> None:
    assert find(TASK, attribution=True) == found
    other = find(TASK, number=1)
    assert other["settings"] != found["settings"]
    assert "attribution" not in other


def test_attribution_is_the_slope_of_the_loss(network: MaskedNetwork, tokenizer: Tokenizer) -> None:
    from pipeline.circuits.calibration import task_loss
    from schemas.circuit import TaskSpec

    pairs = make_pairs(TASK, tokenizer, TaskSpec(pairs=16), "search")
    scores = attribution(network, pairs)
    for layer, location, channel in sorted(CIRCUIT)[:4]:
        node, step = network.nodes.place(layer, location).start + channel, 1e-2
        losses = []
        for value in (1 - step, 1 + step):
            gates = torch.ones(network.nodes.number)
            gates[node] = value
            losses.append(float(task_loss(network.margins(pairs, gates), pairs.signs)))
        assert abs(losses[1] - losses[0]) / (2 * step) == pytest.approx(float(scores[node]), rel=2e-2)
