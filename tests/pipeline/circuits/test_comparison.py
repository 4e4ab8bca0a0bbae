"""Circuits of two models side by side: means and ratios over the tasks that both reach, and the others by name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.circuits.comparison import compare
from schemas.errors import MismatchError


def _found(edges: float, nodes: int = 10) -> dict[str, Any]:
    return {
        "status": "found", "nodes": nodes, "edges_at_target": edges, "measured": {"loss": 0.15},
        "intact": {"loss": 0.0}, "without": {"loss": 0.69}, "attribution": {"edges_at_target": 3 * edges},
    }  # fmt: skip


MISSED = {**_found(0, 99), "status": "missed", "edges_at_target": None}


def _result(tasks: dict[str, dict[str, Any]], **identity: Any) -> dict[str, Any]:
    return {"identity": {"spec": {"mask": 1}, "search": {}, "tokenizer": "abc"} | identity, "tasks": tasks}


def test_means_are_over_the_tasks_that_both_reach_and_the_control_is_none_of_them() -> None:
    dense = _result({"a": _found(800), "b": _found(100), "c": _found(7), "d": MISSED, "nonsense": _found(10_000)})
    sparse = _result({"a": _found(100), "b": _found(50), "c": MISSED, "d": MISSED, "nonsense": MISSED})
    found = compare({"dense": dense, "sparse": sparse}, "dense")
    assert found["common"] == ["a", "b"]
    assert found["left_out"] == {"c": ["sparse"], "d": ["dense", "sparse"]}
    assert found["means"]["dense"]["edges"] == pytest.approx(math.sqrt(800 * 100))
    assert found["means"]["sparse"]["edges_attribution"] == pytest.approx(3 * math.sqrt(100 * 50))
    assert found["ratios"] == {"sparse": pytest.approx({"edges": 4.0, "least": 2.0, "greatest": 8.0})}
    assert found["tasks"]["nonsense"]["dense"]["edges"] == 10_000


def test_without_a_task_in_common_there_is_no_ratio() -> None:
    one = _result({"a": _found(8), "b": {"status": "refused", "reason": "tokens"}})
    other = _result({"a": MISSED, "b": {"status": "refused", "reason": "tokens"}})
    found = compare({"one": one, "other": other}, "one")
    assert (found["ratios"], found["means"]["one"]["edges"]) == ({"other": None}, None)
    assert found["left_out"] == {"a": ["other"], "b": ["one", "other"]}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (_result({"a": _found(8)}, spec={"mask": 2}), r"\['spec'\] differ"),
        (_result({"a": _found(8)}, tokenizer="other"), r"\['tokenizer'\] differ"),
        (_result({"b": _found(8)}), "the same tasks"),
    ],
)
def test_circuits_that_were_not_searched_alike_are_not_compared(other: dict[str, Any], said: str) -> None:
    with pytest.raises(MismatchError, match=said):
        compare({"one": _result({"a": _found(8)}), "other": other}, "one")
