"""What ``${NAME}`` of a train_model job means in the jobs behind it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.collect import CollectSpec
from schemas.pipeline import PipelineSpec

TEXT = {"corpus": {"format": "grammar", "grammar": {"kind": "bigram"}}, "packing": {"context_length": 64}}
TRAINING = {
    "kind": "train_model", "name": "pretrain", "tokens": TEXT, "steps": 100, "snapshots": [0, 8, 100],
    "output": "runs/pretrain/",
}  # fmt: skip
COLLECT = {
    "kind": "collect", "model": {"path": "${pretrain}"}, "tokens": TEXT, "hook_points": ["blocks.0.hook_resid_post"],
    "output": "runs/store",
}  # fmt: skip


def resolved(*jobs: dict[str, Any]) -> CollectSpec:
    """The last job, which collects."""
    found = PipelineSpec.model_validate({"jobs": jobs, "output": "runs"}).resolved()[-1]
    assert isinstance(found, CollectSpec)
    return found


def test_a_model_and_its_tokenizer_are_folders_of_the_output() -> None:
    found = resolved(TRAINING, COLLECT | {"tokens": TEXT | {"tokenizer": "${pretrain}"}})
    assert found.model.path == "runs/pretrain/model"
    assert found.tokens.tokenizer == "runs/pretrain/tokenizer"
    assert not found.is_group


@pytest.mark.parametrize("field", ["snapshots", "snapshots_of"])
def test_all_snapshots_of_a_training_are_collected(field: str) -> None:
    found = resolved(TRAINING, COLLECT | {field: "${pretrain}"})
    assert {name: (one.path, one.step) for name, one in found.snapshots.items()} == {
        f"step{step}": (f"runs/pretrain/snapshots/step{step}", step) for step in (0, 8, 100)
    }
    assert found.is_group
    assert not found.snapshots_of


def test_some_of_them_can_be_chosen() -> None:
    found = resolved(TRAINING, COLLECT | {"snapshots": "${pretrain}", "snapshot_steps": [100, 0]})
    assert list(found.snapshots) == ["step0", "step100"]


def test_a_step_beside_a_reference_is_that_snapshot() -> None:
    snapshots = {"trained": {"path": "${pretrain}"}, "untrained": {"path": "${pretrain}", "step": 0}}
    found = resolved(TRAINING, COLLECT | {"snapshots": snapshots})
    assert {name: one.path for name, one in found.snapshots.items()} == {
        "trained": "runs/pretrain/model",
        "untrained": "runs/pretrain/snapshots/step0",
    }
    assert found.model.path == "runs/pretrain/model"


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        ([COLLECT], r"model\.path refers to '\$\{pretrain\}', but no earlier job of kind 'train_model'"),
        ([COLLECT, TRAINING], "no earlier job"),
        ([TRAINING, COLLECT | {"snapshots": "${pretrian}"}], r"snapshots_of refers .*did you mean 'pretrain'"),
        (
            [TRAINING, COLLECT | {"snapshots": "${pretrain}", "snapshot_steps": [9]}],
            "keeps no snapshot after",
        ),
        (
            [TRAINING, COLLECT | {"snapshots": {"a": {"path": "${pretrain}", "step": 9}}}],
            r"snapshots\.a\.path has step 9, but pretrain keeps no snapshot",
        ),
        ([TRAINING, COLLECT | {"snapshot_steps": [8]}], "snapshots_of, which is not given"),
        ([TRAINING, COLLECT | {"snapshots": "${pretrain}", "snapshot_folders": "a/*"}], "not both"),
        ([TRAINING, COLLECT | {"snapshots": "pretrain"}], "should match pattern"),
    ],
)
def test_what_a_reference_cannot_be_is_said(jobs: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        resolved(*jobs)
