"""Metrics land where they should, each step once, and a missing extra is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.objects import Objects
from pipeline.training.tracker import METRICS, open_trackers, scalars
from schemas.errors import SpecError


def record(step: int) -> dict[str, Any]:
    figures = {"fvu": 0.5, "loss": 0.25}
    return {
        "step": step, "tokens": step * 10, "learning_rate": 1e-3, "tokens_per_s": 5.0, "dictionaries": {"d": figures},
    }  # fmt: skip


def steps(url: str) -> list[int]:
    return [json.loads(line)["step"] for line in Objects(url).read(METRICS).decode().splitlines()]


@pytest.mark.parametrize("remote", [False, True])
def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path, remote: bool) -> None:
    url = "memory://tracker/lines" if remote else str(tmp_path)
    first = open_trackers(["jsonl"], url, job="j", step=0)
    for step in (1, 2, 3):
        first.log(record(step))
    first.flush()
    if not remote:
        with (tmp_path / METRICS).open("a") as file:
            file.write('{"step": 4, "tok')  # a process died while it wrote
    second = open_trackers(["jsonl"], url, job="j", step=2)
    second.log(record(3))
    second.close()
    assert steps(url) == [1, 2, 3]


def test_tensorboard_files_of_a_remote_output_are_uploaded() -> None:
    trackers = open_trackers(["jsonl", "tensorboard"], "memory://tracker/board", job="j", step=0)
    trackers.log(record(1))
    trackers.close()
    keys = Objects("memory://tracker/board").list()
    assert any(key.startswith("tensorboard/events.out.tfevents.") for key in keys)


def test_scalars_are_named_by_dictionary() -> None:
    assert scalars(record(2)) == {
        "tokens": 20, "tokens_per_s": 5.0, "learning_rate": 1e-3, "d/fvu": 0.5, "d/loss": 0.25,
    }  # fmt: skip


def test_wandb_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SpecError, match=r"headworks\[wandb\]"):
        open_trackers(["jsonl", "wandb"], str(tmp_path), job="j", step=0)
    assert not (tmp_path / METRICS).exists()
