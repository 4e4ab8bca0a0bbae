"""What a block structure says of itself, and the points inside of its attention and MLP.

Inside a block the projections of attention and MLP have one of a few sets of names, so their points are found by name:

    attn.hook_q, attn.hook_k, attn.hook_v   what the separate projections return, before norms and rotation of positions
    attn.hook_pattern                       the weights after the softmax, a row for each destination token
    attn.hook_z                             what the output projection W_O takes: all heads' outputs side by side
    mlp.hook_pre, mlp.hook_pre_linear       before the activation function; of a gated MLP also the factor beside it
    mlp.hook_post                           the neurons: what the MLP's output projection takes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

Side = Literal["in", "out", "pattern"]
"""``in``: the first tensor that a module takes; ``out``: the first that it returns; ``pattern``: the last one of four
dimensions ``[B, heads, L, L]`` that it returns."""
Place = tuple[str, Side]
"""Child module of the block (empty: the block itself) and the side of it."""

DECLARED = "hook_family"
"""Attribute of a block, or of its class, that holds its ``Family``."""

PATTERN = "attn.hook_pattern"


@dataclass(frozen=True)
class Family:
    """One block structure."""

    name: str
    """For messages."""
    points: Mapping[str, Place]
    """Point -> place, in the order in which a forward passes them: ``hook_resid_pre``, ``hook_attn_out``, ..."""
    sums: tuple[tuple[str, ...], ...]
    """Each first point is the sum of the others; checked on a real forward before anything is collected."""
    children: frozenset[str] = frozenset()
    """Child modules that tell the structure, where a block does not declare its own."""
    attention: str = ""
    """Child module with the projections of attention, whose points are found by name, but for the pattern of a declared
    structure; empty: ``points`` has all."""
    mlp: str = ""
    """The same of the MLP."""
    carries: bool = False
    """Blocks hand each other more than the stream, so no block runs without those before it."""


_QUERY_KEY_VALUE = (("q_proj", "k_proj", "v_proj"), ("q", "k", "v"), ("query", "key", "value"))
_ATTENTION_OUTPUT = ("o_proj", "out_proj", "c_proj", "dense", "o", "Wo", "proj")
_PRE, _LINEAR, _POST = "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post"
_MLPS: tuple[dict[str, Place], ...] = (
    {_PRE: ("gate_proj", "out"), _LINEAR: ("up_proj", "out"), _POST: ("down_proj", "in")},
    {_PRE: ("wi_0", "out"), _LINEAR: ("wi_1", "out"), _POST: ("wo", "in")},
    {_PRE: ("up_proj", "out"), _POST: ("down_proj", "in")},
    {_PRE: ("fc1", "out"), _POST: ("fc2", "in")},
    {_PRE: ("c_fc", "out"), _POST: ("c_proj", "in")},
    {_PRE: ("dense_h_to_4h", "out"), _POST: ("dense_4h_to_h", "in")},
    {_PRE: ("wi", "out"), _POST: ("wo", "in")},
    # Gate and factor, or none, in one projection: only the output's side has the neurons by themselves.
    {_POST: ("down_proj", "in")},
    {_POST: ("Wo", "in")},
)


def points_of(block: nn.Module, family: Family, *, has_patterns: bool = True) -> dict[str, Place]:
    """All points that this block has, in the order in which a forward passes them."""
    found: dict[str, Place] = {}
    inside = {"hook_attn_out": _attention_points(block, family), "hook_mlp_out": _mlp_points(block, family)}
    for point, place in family.points.items():
        found |= {name: inner for name, inner in inside.get(point, {}).items() if name not in family.points}
        found[point] = place
    if not has_patterns:
        found.pop(PATTERN, None)
    return found


def _attention_points(block: nn.Module, family: Family) -> dict[str, Place]:
    if not family.attention:
        return {}
    children = {name for name, _ in block.get_submodule(family.attention).named_children()}
    found: dict[str, Place] = {}
    for names in _QUERY_KEY_VALUE:
        if children.issuperset(names):
            found = {f"attn.hook_{letter}": (name, "out") for letter, name in zip("qkv", names, strict=True)}
            break
    if family.children:  # of a structure that we know; any other one says whether its attention returns its weights
        found[PATTERN] = ("", "pattern")
    output = next((name for name in _ATTENTION_OUTPUT if name in children), None)
    if output is not None:
        found["attn.hook_z"] = (output, "in")
    return _below(family.attention, found)


def _mlp_points(block: nn.Module, family: Family) -> dict[str, Place]:
    if not family.mlp:
        return {}
    children = {name for name, _ in block.get_submodule(family.mlp).named_children()}
    found = next((points for points in _MLPS if children.issuperset(name for name, _ in points.values())), {})
    return _below(family.mlp, found)


def _below(path: str, points: Mapping[str, Place]) -> dict[str, Place]:
    return {point: (f"{path}.{name}" if name else path, side) for point, (name, side) in points.items()}
