"""What the text of a field lets a job reach: said in the field's type, for whoever decides what a job may reach.

Every field of a job spec that takes free text carries a ``Reach``; a test holds each of them to that. Text that a
pattern or a choice binds cannot name a place, and carries none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

What = Literal[
    "read", "corpus", "write", "model", "model_folders", "tokenizer", "revision", "dataset", "arguments", "tracker",
    "chat", "nothing",
]  # fmt: skip
"""``read``, ``write``: a folder or URL. ``corpus``: files to read, wildcards and ``{stdlib}`` included. ``model``,
``tokenizer``, ``dataset``: a place or a name on the Hub; ``model_folders``: a pattern of local ones. ``revision``: of
what the Hub has. ``arguments``: JSON values that are handed to an allowed import. ``tracker``: who is told of metrics.
``chat``: a server that is sent text of the corpus. ``nothing``: words that are never opened."""


PLACES: frozenset[What] = frozenset({"read", "corpus", "write", "model_folders"})
"""What is always a path or a URL."""
PLACES_OR_NAMES: frozenset[What] = frozenset({"model", "tokenizer", "dataset"})
"""A path, or a name that means the same everywhere."""

Steps = tuple[str | int, ...]


@dataclass(frozen=True)
class Reach:
    """Goes into a field's ``Annotated``."""

    what: What


@dataclass(frozen=True)
class Reached:
    """A value of a job, and what it reaches."""

    field: str
    """Its path in the spec: ``jobs[0].model.path``."""
    what: What
    value: Any
    """Text; of ``arguments`` a mapping."""
    steps: Steps = ()
    """The same path as names, keys and places in lists: where the value lies in ``model_dump``."""


def reached(spec: BaseModel, path: str = "") -> Iterator[Reached]:
    """Everything that a spec reaches, in the order of its fields; values that are None are left out. ``path`` comes
    before the fields, not before the steps.

    Raises:
        TypeError: a text whose type says nothing of its reach.
    """
    for each in _of_spec(spec, ()):
        yield replace(each, field=f"{path}.{each.field}") if path else each


def put(facts: Any, steps: Steps, value: Any) -> None:
    """Replace what lies at ``steps`` of a ``model_dump``, in place."""
    for step in steps[:-1]:
        facts = facts[step]
    facts[steps[-1]] = value


def branches(annotation: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """``(type, metadata)`` of every member of a union, at any depth of ``Annotated``; of other types their own."""
    inner, metadata = annotation, ()
    while get_origin(inner) is Annotated:
        inner, *further = get_args(inner)
        metadata = (*metadata, *further)
    if get_origin(inner) in (Union, UnionType):
        for member in get_args(inner):
            yield from ((each, (*metadata, *own)) for each, own in branches(member))
    else:
        yield inner, metadata


def reach_of(metadata: tuple[Any, ...]) -> Reach | None:
    """The ``Reach`` among them."""
    return next((each for each in metadata if isinstance(each, Reach)), None)


def is_bound(metadata: tuple[Any, ...]) -> bool:
    """Whether a pattern binds the text."""
    return any(getattr(each, "pattern", None) for each in metadata)


def _with_metadata(field: FieldInfo) -> Any:
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _of_spec(spec: BaseModel, steps: Steps) -> Iterator[Reached]:
    for name, field in type(spec).model_fields.items():
        yield from _of((*steps, name), _with_metadata(field), getattr(spec, name))


def _of(steps: Steps, annotation: Any, value: Any) -> Iterator[Reached]:
    if value is None:
        return
    if isinstance(value, BaseModel):
        yield from _of_spec(value, steps)
        return
    for member, metadata in branches(annotation):
        if not _fits(member, value):
            continue
        if reach := reach_of(metadata):
            yield Reached(_named(steps), reach.what, value, steps)
        elif not get_args(member) and isinstance(value, Mapping | list | tuple):
            break
        elif isinstance(value, Mapping):
            for name, item in value.items():
                yield from _of((*steps, name), get_args(member)[1], item)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield from _of((*steps, index), get_args(member)[0], item)
        elif isinstance(value, str) and get_origin(member) is not Literal and not is_bound(metadata):
            break
        return
    if isinstance(value, str | Mapping | list | tuple):
        raise TypeError(
            f"{_named(steps)}: the type {annotation} does not say what its text reaches; give it a schemas.reach.Reach"
        )


def _named(steps: Steps) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def _fits(member: Any, value: Any) -> bool:
    origin = get_origin(member)
    if member is Any:
        return True
    if origin is Literal:
        return value in get_args(member)
    kind = origin or member
    return isinstance(kind, type) and kind is not NoneType and isinstance(value, kind)
