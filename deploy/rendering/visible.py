"""Which places of a job lie on the disk of this machine, where no pod of a cluster sees them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from schemas.corpus import TokensSpec
from schemas.pipeline import AnyJob
from schemas.reach import reached

_PLACES = {"read", "write", "corpus", "model_folders"}
_MAYBE_PLACES = {"model", "tokenizer"}
_OF_THE_MODEL = TokensSpec.model_fields["tokenizer"].default


def local_paths(job: AnyJob) -> Iterator[tuple[str, str]]:
    """``(field, path)``; a model or tokenizer counts if it is found here or can be nothing but a path."""
    for one in reached(job):
        if not isinstance(one.value, str) or not one.value:
            continue
        if (one.what in _PLACES and _is_local(one.value)) or (one.what in _MAYBE_PLACES and _is_file(one.value)):
            yield one.field, one.value


def _is_local(value: str) -> bool:
    # `${NAME}` is another job's output, `{stdlib}` is wherever Python is.
    return "://" not in value and "::" not in value and not value.startswith(("${", "{"))


def _is_file(value: str) -> bool:
    return value.startswith(("/", "~", "./", "../")) or (value != _OF_THE_MODEL and Path(value).exists())
