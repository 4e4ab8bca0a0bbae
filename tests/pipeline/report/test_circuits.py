"""The page of circuits: drawings of nodes and weights, and text of tokens that stays text."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from pipeline.circuits.job import DEFINITIONS, summary_of
from pipeline.report.circuits import render_circuits
from pipeline.report.graph import MOST_EDGES, MOST_TOKENS, circuit_chart, circuit_picture

NODES = [
    {"node": 3, "layer": 0, "location": "mlp_in", "channel": 3, "head": None},
    {"node": 20, "layer": 0, "location": "mlp_neuron", "channel": 1, "head": None},
    {"node": 30, "layer": 0, "location": "mlp_out", "channel": 2, "head": None},
    {"node": 42, "layer": 1, "location": "attn_in", "channel": 2, "head": None},
    {"node": 50, "layer": 1, "location": "attn_k", "channel": 5, "head": 1},
]
CIRCUIT: dict[str, Any] = {
    "nodes": NODES,
    "edges": [["W_in", 3, 20, 2.5], ["W_out", 20, 30, -1.25], ["W_K", 42, 50, 0.5], ["embedding", 7, 3, 1.0]],
    "tokens": {"7": "</svg><script>"},
}
MEASURED = {"loss": 0.14, "raw_loss": 0.2, "accuracy": 0.98, "calibration": {"scale": 1.0, "shift": 0.0}}
FOUND: dict[str, Any] = {
    "task": "for_while", "search": 0, "status": "found", "nodes": 5, "edges": 4, "edges_at_target": 3.5,
    "measured": MEASURED, "intact": MEASURED, "without": {**MEASURED, "loss": 0.69}, "circuit": CIRCUIT,
}  # fmt: skip


def test_every_node_weight_and_shared_channel_is_drawn() -> None:
    drawing, note = circuit_chart(CIRCUIT, title="circuit")
    assert drawing.count('class="node"') == len(NODES) + 1
    assert drawing.count('class="plus"') == 3
    assert drawing.count('class="minus"') == 1
    assert "W_out \u22121.25" in drawing
    assert drawing.count('class="stream"') == 1
    assert "layer 1, attn_k, channel 5, head 1" in drawing
    assert "<script>" not in drawing
    assert note == ""


def test_a_drawing_is_a_picture_by_itself() -> None:
    picture = circuit_picture(CIRCUIT, title="a <circuit>")
    root = ElementTree.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label") == "a <circuit>"
    assert "var(" not in picture
    # Nodes and tokens, each with a box of its own.
    assert len(root.findall(".//{http://www.w3.org/2000/svg}rect")) == len(NODES) + 1
    assert picture == circuit_picture(CIRCUIT, title="a <circuit>")


def test_of_large_circuits_the_strongest_part_is_drawn() -> None:
    nodes = [{**NODES[0], "node": node, "channel": node} for node in range(40)]
    nodes += [{**NODES[1], "node": node, "channel": node - 40} for node in range(40, 80)]
    edges = [["W_in", a, b, 1 / (1 + a + b)] for a in range(40) for b in range(40, 80)]
    tokens = [["embedding", token, 0, 1e-3] for token in range(30)]
    circuit = {"nodes": nodes, "edges": sorted(edges + tokens, key=lambda one: -one[3]),
               "tokens": {str(token): "x" for token in range(30)}}  # fmt: skip
    drawing, note = circuit_chart(circuit, title="circuit")
    assert drawing.count('class="plus"') == MOST_EDGES
    assert f"the {MOST_EDGES} strongest edges" in note
    assert f"{MOST_TOKENS} of the 30 tokens" in note


def test_the_page_names_what_was_missed_and_refused() -> None:
    tasks: dict[str, Any] = {
        "for_while": FOUND,
        "var_swap": {**FOUND, "status": "missed", "edges_at_target": None, "circuit": None},
        "with_as": {"task": "with_as", "search": 0, "status": "refused", "reason": "<no single token>"},
        "nonsense": {**FOUND, "circuit": None},
    }
    figures = {
        "model": "models/<tiny>", "store": None, "target_loss": 0.15, "definitions": DEFINITIONS, "fingerprint": "f",
        "identity": {"model": {"weights": "w"}, "tokenizer": "t", "store": None, "version": "1"},
        "summary": summary_of(tasks),
    }  # fmt: skip
    page = render_circuits("circuits", figures, tasks)
    assert "1 of 3 tasks reach 0.15 nats" in page
    assert "Not reached with all nodes: var_swap." in page
    assert "&lt;no single token&gt;" in page
    assert "models/&lt;tiny&gt;" in page
    assert "The nonsense task reaches the target as well" in page
    assert "<script" not in page
    assert 'href="#circuit-for_while"' in page
