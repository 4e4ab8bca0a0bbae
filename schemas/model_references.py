"""What jobs of a pipeline may take from a train_model job before them: its model, its tokenizer, its snapshots."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypeVar

from schemas.collect import CollectSpec
from schemas.fields import Spec
from schemas.reach import Steps, put, reached
from schemas.snapshots import SnapshotSpec
from schemas.train_model import MODEL, SNAPSHOTS, TOKENIZER, TrainModelSpec

REFERENCE = re.compile(r"^\$\{([A-Za-z0-9_.\-]+)\}$")

_FOLDERS = {"model": MODEL, "tokenizer": TOKENIZER}
"""What a field reaches -> the folder in the training's output that ``${NAME}`` stands for."""

AnySpec = TypeVar("AnySpec", bound=Spec)


def model_references(job: Spec) -> Iterator[tuple[str, str]]:
    """Field and value of each reference to a training of a model."""
    for each in reached(job):
        if each.what in _FOLDERS and REFERENCE.match(each.value):
            yield each.field, each.value
    if isinstance(job, CollectSpec) and job.snapshots_of:
        yield "snapshots_of", job.snapshots_of


def with_models(job: AnySpec, trainings: Mapping[str, TrainModelSpec]) -> AnySpec:
    """The same job with folders in place of references; ``trainings`` by name.

    Raises:
        ValueError: a snapshot is asked for after a step at which the training keeps nothing.
    """
    if not any(model_references(job)):
        return job
    facts = job.model_dump(mode="json")
    for each in reached(job):
        match = REFERENCE.match(each.value) if each.what in _FOLDERS else None
        if match:
            training, step = trainings[match[1]], _step_of(job, each.steps)
            folder = _FOLDERS[each.what] if step is None else _snapshot_folder(training, step, field=each.field)
            put(facts, each.steps, f"{_output(training)}/{folder}")
    if isinstance(job, CollectSpec) and job.snapshots_of:
        found = snapshots_of(trainings[job.snapshots_of[2:-1]], job.snapshot_steps)
        facts |= {"snapshots": {name: one.model_dump(mode="json") for name, one in found.items()}}
        facts |= {"snapshots_of": "", "snapshot_steps": []}
    return type(job).model_validate(facts)


def snapshots_of(training: TrainModelSpec, steps: list[int]) -> dict[str, SnapshotSpec]:
    """By name, in the order of the steps; ``steps``: which, empty for all.

    Raises:
        ValueError: a step at which the training keeps nothing.
    """
    kept = training.snapshot_steps
    folders = {step: _snapshot_folder(training, step, field="snapshot_steps") for step in steps or kept}
    return {
        f"step{step}": SnapshotSpec(path=f"{_output(training)}/{folders[step]}", step=step)
        for step in kept
        if step in folders
    }


def _step_of(job: Spec, steps: Steps) -> int | None:
    """The step that a snapshot gives beside its path, at ``steps``; None of every other field."""
    if isinstance(job, CollectSpec) and steps[0] == "snapshots" and steps[-1] == "path":
        return job.snapshots[str(steps[1])].step
    return None


def _snapshot_folder(training: TrainModelSpec, step: int, *, field: str) -> str:
    kept = training.snapshot_steps
    if step not in kept:
        raise ValueError(
            f"{field} has step {step}, but {training.name} keeps no snapshot after that step (it does after "
            f"{', '.join(map(str, kept))})"
        )
    return f"{SNAPSHOTS}/step{step}"


def _output(training: TrainModelSpec) -> str:
    return training.output.rstrip("/")
