"""Edges: weights that are not zero between two nodes that are kept.

    W_Q, W_K, W_V    attn_in -> attn_q, attn_k, attn_v       W_in     mlp_in -> mlp_neuron
    W_O              attn_v -> attn_out                      W_out    mlp_neuron -> mlp_out
    embedding        token of a prompt -> channel of the stream that a kept node reads
    unembedding      channel of the stream that a kept node writes -> answer

The channel of z that W_O reads is a mixture over tokens of the same channel of v, so it stands for that. Between two
blocks channels are the same channels, without a weight. Biases, learned positions, gains of norms, the bigram table and
the products of queries and keys join no two nodes by a weight and are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.circuits.cut import Kept
from pipeline.circuits.nodes import READS, WRITES, Nodes, Place
from schemas.network import Location

Weights = npt.NDArray[np.float32]

_MATRICES: tuple[tuple[str, str, Location, Location], ...] = (
    ("W_Q", "attn.q_proj", "attn_in", "attn_q"),
    ("W_K", "attn.k_proj", "attn_in", "attn_k"),
    ("W_V", "attn.v_proj", "attn_in", "attn_v"),
    ("W_O", "attn.o_proj", "attn_v", "attn_out"),
    ("W_in", "mlp.up_proj", "mlp_in", "mlp_neuron"),
    ("W_out", "mlp.down_proj", "mlp_neuron", "mlp_out"),
)
NAMES = (*(name for name, *_ in _MATRICES), "embedding", "unembedding")
"""Of the matrices, in the order of a forward but for the embedding."""


@dataclass(frozen=True)
class _Matrix:
    name: str
    weights: Weights
    """[width of target, width of source]."""
    source: Place
    target: Place


@dataclass(frozen=True)
class Edge:
    """One weight."""

    matrix: str
    source: int
    """A node; of ``embedding`` the id of a token."""
    target: int
    """A node; of ``unembedding`` the id of a token. Of ``embedding`` the first node that reads the channel, and so on
    of ``unembedding`` the source is the last that writes it."""
    weight: float


class Edges:
    """The weights of a decoder, and the tokens of one task."""

    def __init__(self, decoder: Any, nodes: Nodes, *, prompt_tokens: Sequence[int], answers: Sequence[int]) -> None:
        """``prompt_tokens``, ``answers``: ids, each once."""
        self._nodes = nodes
        self._matrices = [
            _Matrix(
                name,
                decoder.model.blocks[layer].get_submodule(path).weight.detach().float().cpu().numpy(),
                nodes.place(layer, source),
                nodes.place(layer, target),
            )
            for layer in range(nodes.spec.layers)
            for name, path, source, target in _MATRICES
        ]
        self._tokens = {"embedding": list(prompt_tokens), "unembedding": list(answers)}
        tables = {"embedding": decoder.model.embed.weight, "unembedding": decoder.lm_head.weight}
        self._tables = {
            name: table.detach()[self._tokens[name]].float().cpu().numpy() for name, table in tables.items()
        }
        """[tokens, width of the stream]."""

    def by_matrix(self, kept: Kept) -> dict[str, int]:
        """Matrix -> edges between the nodes ``kept``, over all layers."""
        counts = dict.fromkeys(NAMES, 0)
        for matrix in self._matrices:
            inside = matrix.weights[kept[matrix.target.nodes]][:, kept[matrix.source.nodes]]
            counts[matrix.name] += int(np.count_nonzero(inside))
        for name, table in self._tables.items():
            counts[name] = int(np.count_nonzero(table[:, self._channels(name, kept) >= 0]))
        return counts

    def count(self, kept: Kept) -> int:
        """All of them."""
        return sum(self.by_matrix(kept).values())

    def strongest(self, kept: Kept, most: int) -> list[Edge]:
        """At most so many edges, those of greatest weight by magnitude, greatest first."""
        found = [edge for matrix in self._matrices for edge in _of_matrix(matrix, kept)]
        for name in self._tables:
            found += self._of_table(name, kept)
        return sorted(found, key=lambda edge: (-abs(edge.weight), edge.matrix, edge.source, edge.target))[:most]

    def _channels(self, name: str, kept: Kept) -> npt.NDArray[np.int64]:
        """[width of the stream]: the first kept node that reads each channel, or the last that writes it; -1 of a
        channel with none."""
        found = np.full(self._nodes.spec.d_model, -1, dtype=np.int64)
        locations = READS if name == "embedding" else WRITES
        places = [place for place in self._nodes.places if place.location in locations]
        for place in reversed(places) if name == "embedding" else places:
            channels = np.flatnonzero(kept[place.nodes])
            found[channels] = place.start + channels
        return found

    def _of_table(self, name: str, kept: Kept) -> list[Edge]:
        channels, table = self._channels(name, kept), self._tables[name]
        found = []
        for row, channel in zip(*np.nonzero(table * (channels >= 0)), strict=True):
            token, node = self._tokens[name][int(row)], int(channels[channel])
            ends = (token, node) if name == "embedding" else (node, token)
            found.append(Edge(name, *ends, float(table[row, channel])))
        return found


def _of_matrix(matrix: _Matrix, kept: Kept) -> list[Edge]:
    inside = matrix.weights * kept[matrix.target.nodes][:, None] * kept[matrix.source.nodes][None, :]
    return [
        Edge(matrix.name, matrix.source.start + int(source), matrix.target.start + int(target), float(inside[at]))
        for at in zip(*np.nonzero(inside), strict=True)
        for target, source in [at]
    ]
