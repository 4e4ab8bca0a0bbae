"""The section on universality: how alike the spaces of paired latents are, beside shuffled pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADER = [
    "dictionaries",
    "pairs",
    "number",
    "mean r",
    "SVCCA",
    "shuffled",
    "effect",
    "p",
    "RSA",
    "shuffled",
    "effect",
    "p",
]


def universality_table(found: Sequence[Mapping[str, Any]] | None) -> tuple[list[str], list[list[str]]] | None:
    """Header and two rows for each two dictionaries: all pairs of latents, and those that stand for concepts."""
    if not found:
        return None
    rows = [
        [f"{one['first']} ~ {one['second']}", of, f"{figures['one_to_one']:,}", *_figures(figures)]
        for one in found
        for of, figures in (("all", one), ("concepts", one["concepts"]))
    ]
    return HEADER, rows


def _figures(one: Mapping[str, Any]) -> list[str]:
    mean = one["correlation"]
    return ["\u2013" if mean is None else f"{mean:.3f}", *_similarity(one["svcca"]), *_similarity(one["rsa"])]


def _similarity(one: Mapping[str, float] | None) -> list[str]:
    if one is None:
        return ["\u2013"] * 4
    null = f"{one['null_mean']:.3f} \u00b1 {one['null_deviation']:.3f}"
    texts = [f"{one['observed']:.3f}", null, f"{one['effect']:.1f}", f"{one['p_value']:.1g}"]
    return [text.replace("-", "\u2212") for text in texts]
