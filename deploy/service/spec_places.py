"""Places in a spec that the service takes: it has no current directory that a relative path could mean."""

from __future__ import annotations

from collections.abc import Iterable

from schemas.errors import SpecError
from schemas.pipeline import AnyJob, PipelineSpec
from schemas.reach import PLACES, PLACES_OR_NAMES, Reached, reached


def require_absolute(job: AnyJob) -> None:
    """Return if every place is absolute or a URL.

    Raises:
        SpecError: naming each field that is not.
    """
    if isinstance(job, PipelineSpec):
        wrong = _wrong([Reached("output", "write", job.output)])
        for index, each in enumerate(job.jobs):
            wrong += _wrong(reached(each, f"jobs[{index}]"))
    else:
        wrong = _wrong(reached(job))
    if wrong:
        raise SpecError("\n".join(wrong))


def _wrong(found: Iterable[Reached]) -> list[str]:
    return [
        f"{each.field}: {each.value!r} is a relative path, which means another folder on every machine; give an "
        "absolute path or a URL (`headworks submit` makes paths absolute from where you are)"
        for each in found
        if isinstance(each.value, str) and _is_relative(each)
    ]


def _is_relative(each: Reached) -> bool:
    text = each.value
    if not text or "://" in text or text.startswith(("/", "{", "${", "python:")):
        return False
    # A name on the Hub begins with a letter.
    return each.what in PLACES or (each.what in PLACES_OR_NAMES and text.startswith((".", "~")))
