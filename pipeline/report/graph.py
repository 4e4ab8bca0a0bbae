"""A circuit as an inline SVG: nodes in columns in the order of a forward, weights as curves between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

MOST_EDGES = 240
"""More would be a blot."""
MOST_TOKENS = 12
"""Of prompts."""
_COLUMN, _ROW, _LEFT, _TOP, _BOTTOM = 124, 30, 70, 46, 16
_COLUMNS = ("attn_in", "attn_qkv", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")
_COLUMN_OF = {"attn_q": "attn_qkv", "attn_k": "attn_qkv", "attn_v": "attn_qkv"}
_TITLES = {
    "attn_in": "attention reads", "attn_qkv": "query, key, value", "attn_out": "attention writes",
    "mlp_in": "MLP reads", "mlp_neuron": "neurons", "mlp_out": "MLP writes",
}  # fmt: skip
_READS, _WRITES = ("attn_in", "mlp_in"), ("attn_out", "mlp_out")

_STYLE = (
    "path { fill: none } .plus { stroke: #0b57d0 } .minus { stroke: #c2410c; stroke-dasharray: 5 3 } "
    ".stream { stroke: #c9c5bb; stroke-dasharray: 1 4; stroke-width: 1.6; stroke-linecap: round } "
    ".node rect { fill: #ffffff; stroke: #c9c5bb } text { fill: #1c1e21; font: 10px sans-serif } "
    ".column { font-weight: 600 }"
)
"""Of a drawing by itself; on a page its style sheet has the same, and a dark one."""

Key = tuple[str, int]
"""``node`` and its number, or ``from`` or ``to`` and the id of a token."""


@dataclass(frozen=True)
class _Edge:
    matrix: str
    source: Key
    target: Key
    weight: float


def circuit_chart(circuit: Mapping[str, Any], *, title: str) -> tuple[Markup, str]:
    """The drawing of what ``pipeline.circuits.circuit`` lists, and a note of what it leaves out, empty if nothing."""
    edges = _edges(circuit)
    shown = edges[:MOST_EDGES]
    touched = {key for edge in shown for key in (edge.source, edge.target)}
    nodes = [node for node in circuit["nodes"] if len(edges) <= MOST_EDGES or ("node", node["node"]) in touched]
    columns = _columns(nodes, shown, circuit["tokens"])
    places = _places(columns)
    height = _TOP + _ROW * max((len(column) for _, column in columns), default=1) + _BOTTOM
    largest = {edge.matrix: max(abs(one.weight) for one in shown if one.matrix == edge.matrix) for edge in shown}
    marks = [_stream(places[one], places[other]) for one, other in _streams(nodes)]
    marks += [
        _curve(edge, places[edge.source], places[edge.target], largest[edge.matrix])
        for edge in shown
        if edge.source in places and edge.target in places
    ]
    marks += [_heading(title, index) for index, (title, _) in enumerate(columns)]
    marks += [_dot(places[key], text, hint) for _, column in columns for key, text, hint in column]
    drawing = Markup(
        '<svg class="chart graph" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{marks}</svg>'
    ).format(width=_LEFT * 2 + _COLUMN * (len(columns) - 1), height=height, title=title, marks=Markup("").join(marks))
    return drawing, _note(circuit, nodes, edges, shown, places)


def circuit_picture(circuit: Mapping[str, Any], *, title: str) -> str:
    """The same drawing as a file of its own, an SVG on white that needs no style sheet; the same bytes each time."""
    drawing, _ = circuit_chart(circuit, title=title)
    opened, _, rest = drawing.partition(">")
    return f'{opened} xmlns="http://www.w3.org/2000/svg"><style>svg {{ background: #ffffff }} {_STYLE}</style>{rest}'


def _edges(circuit: Mapping[str, Any]) -> list[_Edge]:
    """Greatest first; of tokens of prompts only those with the greatest weights."""
    found, tokens = [], set[int]()
    for matrix, source, target, weight in circuit["edges"]:
        if matrix == "embedding":
            if source not in tokens and len(tokens) == MOST_TOKENS:
                continue
            tokens.add(source)
        kinds = ("from" if matrix == "embedding" else "node", "to" if matrix == "unembedding" else "node")
        found.append(_Edge(matrix, (kinds[0], source), (kinds[1], target), weight))
    return found


def _columns(
    nodes: Sequence[Mapping[str, Any]], edges: Sequence[_Edge], tokens: Mapping[str, str]
) -> list[tuple[str, list[tuple[Key, str, str]]]]:
    """Heading, and of each entry its key, label and hint; empty columns are left out."""
    found: dict[tuple[int, int], list[tuple[Key, str, str]]] = {}
    for node in nodes:
        column = _COLUMNS.index(_COLUMN_OF.get(node["location"], node["location"]))
        found.setdefault((node["layer"], column), []).append((("node", node["node"]), _label(node), _hint(node)))
    columns = [(f"{layer}: {_TITLES[_COLUMNS[at]]}", found[layer, at]) for layer, at in sorted(found)]
    sources = sorted({edge.source for edge in edges if edge.source[0] == "from"})
    targets = sorted({edge.target for edge in edges if edge.target[0] == "to"})
    before = [("tokens", [(key, _visible(tokens[str(key[1])]), "token of a prompt") for key in sources])]
    after = [("answers", [(key, _visible(tokens[str(key[1])]), "answer") for key in targets])]
    return [*(before if sources else []), *columns, *(after if targets else [])]


def _label(node: Mapping[str, Any]) -> str:
    letter = node["location"].removeprefix("attn_") if node["head"] is not None else ""
    return f"{letter}{node['channel']}" if letter in ("q", "k", "v") else str(node["channel"])


def _hint(node: Mapping[str, Any]) -> str:
    head = "" if node["head"] is None else f", head {node['head']}"
    return f"layer {node['layer']}, {node['location']}, channel {node['channel']}{head}"


def _visible(piece: str) -> str:
    return piece.replace(" ", "\u2423").replace("\n", "\u21b5")


def _places(columns: Sequence[tuple[str, Sequence[tuple[Key, str, str]]]]) -> dict[Key, tuple[float, float]]:
    most = max((len(column) for _, column in columns), default=1)
    return {
        key: (_LEFT + index * _COLUMN, _TOP + _ROW * (row + 0.5 + (most - len(column)) / 2))
        for index, (_, column) in enumerate(columns)
        for row, (key, *_) in enumerate(column)
    }


def _streams(nodes: Sequence[Mapping[str, Any]]) -> list[tuple[Key, Key]]:
    """Pairs of a node that writes a channel of the stream and one that reads it later."""
    order = {location: index for index, location in enumerate((*_READS[:1], *_WRITES[:1], *_READS[1:], *_WRITES[1:]))}
    writes = [node for node in nodes if node["location"] in _WRITES]
    reads = [node for node in nodes if node["location"] in _READS]
    return [
        (("node", one["node"]), ("node", other["node"]))
        for one in writes
        for other in reads
        if one["channel"] == other["channel"]
        and (one["layer"], order[one["location"]]) < (other["layer"], order[other["location"]])
    ]


def _path(start: tuple[float, float], stop: tuple[float, float]) -> str:
    (x, y), (to_x, to_y) = start, stop
    middle = (x + to_x) / 2
    return f"M{x + 13:.1f} {y:.1f}C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x - 13:.1f} {to_y:.1f}"


def _curve(edge: _Edge, start: tuple[float, float], stop: tuple[float, float], largest: float) -> Markup:
    share = abs(edge.weight) / largest
    return Markup(
        '<path class="{sign}" d="{path}" stroke-width="{width}" stroke-opacity="{strength}">'
        "<title>{matrix} {weight}</title></path>"
    ).format(
        sign="minus" if edge.weight < 0 else "plus",
        path=_path(start, stop),
        width=f"{0.6 + 2.4 * share:.2f}",
        strength=f"{0.3 + 0.6 * share:.2f}",
        matrix=edge.matrix,
        weight=f"{edge.weight:.3g}".replace("-", "\u2212"),
    )


def _stream(start: tuple[float, float], stop: tuple[float, float]) -> Markup:
    return Markup('<path class="stream" d="{path}"><title>the same channel of the stream</title></path>').format(
        path=_path(start, stop)
    )


def _dot(place: tuple[float, float], text: str, hint: str) -> Markup:
    return Markup(
        '<g class="node"><title>{hint}</title><rect x="{left}" y="{top}" width="26" height="20" rx="6"/>'
        '<text x="{x}" y="{y}" text-anchor="middle">{text}</text></g>'
    ).format(
        hint=hint,
        left=f"{place[0] - 13:.1f}",
        top=f"{place[1] - 10:.1f}",
        x=f"{place[0]:.1f}",
        y=f"{place[1] + 4:.1f}",
        text=text if len(text) <= 5 else f"{text[:4]}\u2026",
    )


def _heading(title: str, index: int) -> Markup:
    return Markup('<text class="column" x="{x}" y="18" text-anchor="middle">{title}</text>').format(
        x=_LEFT + index * _COLUMN, title=title
    )


def _note(
    circuit: Mapping[str, Any],
    nodes: Sequence[Any],
    edges: Sequence[_Edge],
    shown: Sequence[_Edge],
    places: Mapping[Key, Any],
) -> str:
    tokens = {source for matrix, source, *_ in circuit["edges"] if matrix == "embedding"}
    left_out = []
    if len(shown) < len(edges):
        left_out.append(f"the {len(shown)} strongest edges and the {len(nodes)} nodes that they join")
    if len(tokens) > MOST_TOKENS:
        left_out.append(f"{MOST_TOKENS} of the {len(tokens)} tokens that prompts bring in")
    return f"Drawn are {' and '.join(left_out)}." if left_out else ""
