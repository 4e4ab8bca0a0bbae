"""Nodes: the channels of a decoder at the eight locations of each block, in one numbering.

    attn_in                       what attention reads of the residual stream, behind its RMSNorm
    attn_q, attn_k, attn_v        channels of queries, keys and values, all heads side by side
    attn_out                      what attention writes to the residual stream
    mlp_in, mlp_neuron, mlp_out   the same of the MLP, and its neurons

Nodes are numbered layer by layer, location by location, channel by channel. Letters: M nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from schemas.network import LOCATIONS, Location, NetworkSpec

HOOKS: Mapping[Location, str] = MappingProxyType(
    {
        "attn_in": "hook_attn_in",
        "attn_q": "attn.hook_q",
        "attn_k": "attn.hook_k",
        "attn_v": "attn.hook_v",
        "attn_out": "hook_attn_out",
        "mlp_in": "hook_mlp_in",
        "mlp_neuron": "mlp.hook_post",
        "mlp_out": "hook_mlp_out",
    }
)
"""Location -> hook point of a block."""
READS: tuple[Location, ...] = ("attn_in", "mlp_in")
"""Locations whose channels are those of the residual stream, read there."""
WRITES: tuple[Location, ...] = ("attn_out", "mlp_out")
"""And written there."""


@dataclass(frozen=True)
class Place:
    """One location of one layer."""

    layer: int
    location: Location
    width: int
    start: int
    """Number of its first node."""

    @property
    def hook(self) -> str:
        """Its hook point."""
        return f"blocks.{self.layer}.{HOOKS[self.location]}"

    @property
    def nodes(self) -> slice:
        """Its nodes among all."""
        return slice(self.start, self.start + self.width)


class Nodes:
    """All nodes of a decoder and where they are."""

    def __init__(self, spec: NetworkSpec) -> None:
        places, start = [], 0
        for layer in range(spec.layers):
            for location in LOCATIONS:
                places.append(Place(layer, location, spec.width(location), start))
                start += places[-1].width
        self.spec = spec
        self.places: tuple[Place, ...] = tuple(places)
        """In the order of the numbering."""
        self.number = start
        """M."""

    def place(self, layer: int, location: Location) -> Place:
        """One location of one layer."""
        return self.places[layer * len(LOCATIONS) + LOCATIONS.index(location)]

    def where(self, node: int) -> tuple[Place, int]:
        """The place of a node and its channel there."""
        starts = np.array([place.start for place in self.places])
        found = self.places[int(np.searchsorted(starts, node, side="right")) - 1]
        return found, node - found.start

    def head(self, place: Place, channel: int) -> int | None:
        """The head that a channel of queries, keys or values belongs to; None elsewhere."""
        return channel // self.spec.head_width if place.location in ("attn_q", "attn_k", "attn_v") else None

    def by_location(self, kept: npt.NDArray[np.bool_]) -> dict[str, int]:
        """Location -> how many of the kept nodes, bool [M], are there, over all layers."""
        return {
            location: sum(int(kept[place.nodes].sum()) for place in self.places if place.location == location)
            for location in LOCATIONS
        }
