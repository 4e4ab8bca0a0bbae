"""The circuits of several models, searched alike, side by side: whose are smaller, and by how much?

A ratio over tasks says something only of the tasks that all models reach, so the others are named beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.circuits.job import geometric_mean
from schemas.circuit import NONSENSE
from schemas.errors import MismatchError

_ASKED = ("spec", "search", "tokenizer")
"""Parts of a job's identity in which models that are compared must agree."""


def compare(results: Mapping[str, Mapping[str, Any]], first: str) -> dict[str, Any]:
    """``results``: name -> ``circuits.json``; ``first``: whose edges are divided by those of each of the others.

    ``tasks``: what each model's circuit comes to; ``means``: geometric means over ``common``, the tasks that all models
    reach; ``ratios``: means of ``first`` over those of the others, with the range over these tasks; ``left_out``: task
    -> models that miss it or cannot be asked.

    Raises:
        MismatchError: the jobs had other settings, tasks or tokenizers.
    """
    _require_alike(results)
    tasks = {task: {name: _short(one["tasks"][task]) for name, one in results.items()} for task in _tasks(results)}
    real = [task for task in tasks if task != NONSENSE]
    left_out = {task: [name for name in results if tasks[task][name]["status"] != "found"] for task in real}
    common = [task for task in real if not left_out[task]]
    return {
        "first": first,
        "common": common,
        "left_out": {task: names for task, names in left_out.items() if names},
        "means": {name: _means([tasks[task][name] for task in common]) for name in results},
        "ratios": {
            name: _ratio([(tasks[task][first]["edges"], tasks[task][name]["edges"]) for task in common])
            for name in results
            if name != first
        },
        "tasks": tasks,
    }


def _tasks(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(next(iter(results.values()))["tasks"])


def _require_alike(results: Mapping[str, Mapping[str, Any]]) -> None:
    (name, one), *others = results.items()
    for other_name, other in others:
        differing = [part for part in _ASKED if one["identity"][part] != other["identity"][part]]
        if differing:
            raise MismatchError(
                f"the circuits of {name!r} and {other_name!r} were not searched alike, their {differing} differ: "
                "give both jobs the same settings and tokenizer"
            )
        if list(one["tasks"]) != list(other["tasks"]):
            raise MismatchError(
                f"the circuits of {name!r} are of the tasks {list(one['tasks'])}, those of {other_name!r} of "
                f"{list(other['tasks'])}: give both jobs the same tasks"
            )


def _short(task: Mapping[str, Any]) -> dict[str, Any]:
    """Of one model and task: counts, and the losses that belong to them."""
    if task["status"] == "refused":
        return {"status": "refused"}
    rival = task.get("attribution", {})
    return {
        "status": task["status"],
        "nodes": task["nodes"],
        "edges": task["edges_at_target"],
        "loss": task["measured"]["loss"],
        "loss_intact": task["intact"]["loss"],
        "loss_without": task["without"]["loss"],
        "edges_attribution": rival.get("edges_at_target"),
    }


def _means(found: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    rivals = [one["edges_attribution"] for one in found if one["edges_attribution"] is not None]
    return {
        "edges": geometric_mean([one["edges"] for one in found]),
        "nodes": geometric_mean([one["nodes"] for one in found]),
        "edges_attribution": geometric_mean(rivals) if len(rivals) == len(found) else None,
    }


def _ratio(edges: Sequence[tuple[float, float]]) -> dict[str, float] | None:
    """Of pairs of counts, one for each common task; None where there is none."""
    one, other = (geometric_mean([pair[side] for pair in edges]) for side in (0, 1))
    if one is None or other is None:
        return None
    # A circuit of less than an edge counts as one, as in ``geometric_mean``.
    ratios = [max(first, 1.0) / max(second, 1.0) for first, second in edges]
    return {"edges": one / other, "least": min(ratios), "greatest": max(ratios)}
