"""Relative paths of a job made absolute, since the processes that run it have working directories of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.spec_file import validated
from schemas.corpus import TokensSpec
from schemas.pipeline import AnyJob
from schemas.reach import PLACES, PLACES_OR_NAMES, What, put, reached


def anchored(job: AnyJob, folder: Path) -> AnyJob:
    """The same job with every relative local path below ``folder``. URLs and references to other jobs stay."""
    facts = job.model_dump(mode="json")
    for each in reached(job):
        rule = _RULES.get(each.what)
        if rule is not None and each.value:
            put(facts, each.steps, rule(each.value, folder))
    return validated(facts, where=job.name)


def _place(value: str, folder: Path) -> str:
    if "://" in value or "::" in value or value.startswith(("${", "{")):
        return value
    return str(folder / Path(value).expanduser())


def _maybe_place(value: str, folder: Path) -> str:
    """A name, or a path where there is such a file."""
    path = folder / Path(value).expanduser()
    return str(path) if value != TokensSpec.model_fields["tokenizer"].default and path.exists() else value


_RULES: dict[What, Callable[[str, Path], str]] = {
    **dict.fromkeys(PLACES, _place),
    **dict.fromkeys(PLACES_OR_NAMES, _maybe_place),
}
