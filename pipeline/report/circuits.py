"""The page of a circuit job: a table of tasks and a drawing of each circuit. Nothing is fetched, nothing a script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.graph import circuit_chart

_COLUMNS = (
    "Task", "Nodes", "Edges at target", "Loss", "Loss, all nodes", "Accuracy, all nodes", "Loss without the circuit",
    "Edges by attribution",
)  # fmt: skip
_NONE = "\u2013"


def render_circuits(title: str, figures: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of ``circuits.json``, ``figures``, and of the tasks' results with their circuits."""
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=False
    )
    source = environment.loader
    assert source is not None
    style = "".join(source.get_source(environment, name)[0] for name in ("report.css", "circuits.css"))
    return environment.get_template("circuits.html.j2").render(
        title=title,
        style=Markup(style),  # noqa: S704 - our own files
        lede=_lede(figures),
        note=_note(figures),
        columns=_COLUMNS,
        rows=[_row(name, one) for name, one in tasks.items()],
        definitions=list(figures["definitions"].items()),
        circuits=[_drawing(name, one) for name, one in tasks.items() if one.get("circuit")],
        provenance=_provenance(figures),
    )


def _lede(figures: Mapping[str, Any]) -> str:
    summary = figures["summary"]
    mean = summary["edges_geometric_mean"]
    number = len(summary["found"])
    total = number + len(summary["missed"]) + len(summary["refused"])
    over = f", {_count(mean)} edges in the geometric mean" if mean is not None else ""
    return (
        f"{number} of {total} tasks reach {figures['target_loss']:g} nats in {figures['model']} with a part of its "
        f"nodes{over}."
    )


def _note(figures: Mapping[str, Any]) -> str:
    summary = figures["summary"]
    lines = [
        f"{what}: {', '.join(summary[key])}."
        for key, what in (("missed", "Not reached with all nodes"), ("refused", "Not posed by this tokenizer"))
        if summary[key]
    ]
    if summary["nonsense"]:
        reached = summary["nonsense"] == "found"
        lines.append(
            "The nonsense task reaches the target as well: compare its circuit with the others' before you trust them."
            if reached
            else "The nonsense task does not reach the target."
        )
    return " ".join(lines)


def _row(name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    if one["status"] == "refused":
        return {"name": name, "anchor": "", "reason": one["reason"], "cells": []}
    found = one["status"] == "found"
    rival = one.get("attribution", {})
    return {
        "name": name,
        "anchor": f"circuit-{name}" if found else "",
        "reason": "",
        "cells": [
            f"{one['nodes']:,}" if found else "not reached",
            _count(one["edges_at_target"]),
            _loss(one["measured"]["loss"]),
            _loss(one["intact"]["loss"]),
            f"{100 * one['intact']['accuracy']:.1f}\u202f%",
            _loss(one["without"]["loss"]) if found else _NONE,
            _count(rival.get("edges_at_target")),
        ],
    }


def _drawing(name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    svg, note = circuit_chart(one["circuit"], title=f"circuit of {name}")
    what = f"{one['nodes']:,} nodes, {one['edges']:,} edges, loss {_loss(one['measured']['loss'])}"
    return {"name": name, "anchor": f"circuit-{name}", "what": what, "svg": svg, "note": note}


def _provenance(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = figures["identity"]
    return [
        ("Model", figures["model"]),
        ("Weights", facts["model"].get("weights") or facts["model"].get("revision") or _NONE),
        ("Tokenizer", facts["tokenizer"]),
        ("Store of means", figures["store"] or "none: nodes that are left out are 0"),
        ("Store fingerprint", facts["store"]["fingerprint"] if facts["store"] else _NONE),
        ("Target loss", f"{figures['target_loss']:g} nats"),
        ("Result", figures["fingerprint"]),
        ("Headworks", facts["version"] or _NONE),
    ]


def _count(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _loss(value: float) -> str:
    return f"{value:.4f}"
