"""Relative paths of a job made absolute, since the processes that run it have working directories of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.spec_file import validated
from schemas.corpus import TokensSpec
from schemas.pipeline import AnyJob

_PLACES = {"output", "store", "dictionaries", "urls", "scratch", "snapshot_folders"}
"""Fields that hold paths or URLs and nothing else."""

_MAYBE_PLACES = {"path", "tokenizer"}
"""Fields that hold a name or a path: a path where there is such a file."""


def anchored(job: AnyJob, folder: Path) -> AnyJob:
    """The same job with every relative local path below ``folder``. URLs and references to other jobs stay."""
    return validated(_anchored(job.model_dump(mode="json"), folder, ""), where=job.name)


def _anchored(value: Any, folder: Path, field: str) -> Any:
    if isinstance(value, dict):
        # Whatever names a user gives to the stores of a job, its snapshots or a model's arguments, they are no fields.
        inherited: dict[str, str] = {"arguments": "", "store": "store", "snapshots": "snapshot"}
        return {key: _anchored(item, folder, inherited.get(field, str(key))) for key, item in value.items()}
    if isinstance(value, list):
        return [_anchored(item, folder, field) for item in value]
    if not isinstance(value, str) or not value:
        return value
    rule = _RULES.get(field)
    return rule(value, folder) if rule else value


def _place(value: str, folder: Path) -> str:
    if "://" in value or "::" in value or value.startswith(("${", "{")):
        return value
    return str(folder / Path(value).expanduser())


def _maybe_place(value: str, folder: Path) -> str:
    path = folder / Path(value).expanduser()
    return str(path) if value != TokensSpec.model_fields["tokenizer"].default and path.exists() else value


_RULES: dict[str, Callable[[str, Path], str]] = dict.fromkeys(_PLACES, _place)
_RULES |= dict.fromkeys(_MAYBE_PLACES, _maybe_place)
