"""What the study of concepts reads off the figures of an evaluation."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    found = runpy.run_path(str(EXAMPLES / "concepts.py"))
    for name in ("pictures", "save_result"):
        sys.modules.pop(name, None)
    return found


def phases(*rows: tuple[int, float, float, float]) -> dict[str, Any]:
    names = ("step", "loss", "kl_unigram", "kl_bigram")
    return {"snapshots": [dict(zip(names, row, strict=True)) for row in rows]}


def test_when_each_phase_was_reached(study: dict[str, Any]) -> None:
    exact = {"unigram": 4.0, "bigram": 3.0}
    found = phases((0, 5, 1, 2), (8, 4.1, 0.1, 1), (64, 3.2, 0.6, 0.3), (512, 2.9, 0.9, 0.7))
    assert study["reached"](found, {0: 5.0, 8: 4.1, 64: 3.9, 512: 2.9}, exact) == {
        "kl_unigram_least": 8, "kl_bigram_least": 64, "loss_below_unigram": 64, "loss_below_bigram": 512,
    }  # fmt: skip
    assert study["reached"](found, {0: 5.0}, exact)["loss_below_bigram"] is None


def test_cosines_of_neighbours_and_with_the_last(study: dict[str, Any]) -> None:
    rotation = [[1, 0.2, 0.1], [0.2, 1, 0.9], [0.1, 0.9, 1]]
    assert study["cosines"](rotation) == {"neighbours": [0.2, 0.9], "with_last": [0.1, 0.9, 1]}


@pytest.mark.slow
def test_the_same_figures_give_the_same_picture(study: dict[str, Any], tmp_path: Path) -> None:
    found = phases((0, 5, 1, 2), (8, 4.1, 0.1, 1))
    run = {
        "held_out_loss": {0: 5.0, 8: 4.1},
        "snapshots": found["snapshots"],
        "exact_entropy": {"unigram": 4.0, "bigram": 3.0},
        "crosscoder": {"peaks": [3, 4], "cosines": {"neighbours": [0.5]}},
    }
    for name in ("one.svg", "two.svg"):
        study["draw"]({"concepts": run, "concepts_control": run}, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
