"""pydantic's validation errors in the words of the file: full field path, what was expected, what was there."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemas.errors import nearest
from schemas.fields import holds_credentials
from schemas.pipeline import AnyJob

_SHOWN_CHARACTERS = 80
_MOVED = {"value_error", "assertion_error"}


def explained(error: ValidationError, spec: Any = AnyJob) -> list[str]:
    """One line for each wrong field of ``spec``, in the order of the fields."""
    found: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        found.setdefault(_place(details["loc"], spec), []).append(details)
    return [line for several in found.values() for line in _of_one_place(several, spec)]


def _of_one_place(several: list[ErrorDetails], spec: Any) -> list[str]:
    """Errors of all forms that a field may have: those inside the form that it was given in, if it was in any."""
    place = _place(several[0]["loc"], spec)
    inside = [details for details in several if len(details["loc"]) > len(place) + 1]
    if inside or len(several) == 1:
        return [explained_details(details, spec) for details in inside or several]
    path, owner = locate(several[0]["loc"], spec)
    *others, last = [_said(details, owner) for details in several]
    got = f", got {shown(several[0]['input'])}"
    said = ", or ".join([*(one.removesuffix(got) for one in others), last])
    return [f"{path}: {said}" if path else said]


def _place(loc: tuple[int | str, ...], spec: Any) -> tuple[int | str, ...]:
    """The part of a location that leads to the first field which may have several forms; all of it if none may."""
    here = spec
    for index, step in enumerate(loc):
        if _forms(here):
            return loc[:index]
        here = _next(here, step)
    return loc


def explained_details(details: ErrorDetails, spec: Any = AnyJob) -> str:
    """The line of one wrong field."""
    path, owner = locate(details["loc"], spec)
    said = _said(details, owner)
    return f"{path}: {said}" if path else said


def locate(loc: Sequence[int | str], spec: Any = AnyJob) -> tuple[str, type[BaseModel] | None]:
    """``(field path as in the file, the spec that has or lacks the last field)`` of a pydantic location.

    pydantic puts the tag of a discriminated union, and the form that it tried of any other, into the location;
    following the types tells them from fields.
    """
    here = spec
    path, owner = "", None
    for step in loc:
        if step == "[key]":  # the key before it is what is wrong
            continue
        specs = _specs(here)
        if len(specs) < 2 and not _forms(here):
            owner = specs[0] if specs else None
            path += f"[{step}]" if isinstance(step, int) else f".{step}"
        here = _next(here, step)
    return path.removeprefix("."), owner


def _next(here: Any, step: int | str) -> Any:
    """The annotation behind a step of a location."""
    if step == "[key]":
        return here
    specs = _specs(here)
    if len(specs) > 1:
        return next((spec for spec in specs if step in _tags(spec)), Any)
    if forms := _forms(here):
        return next((form for form in forms if _is_called(form, str(step))), Any)
    return _inside(here, specs[0] if specs else None, step)


def _forms(annotation: Any) -> list[Any]:
    """What a value may be that no tag tells apart, such as a spec or a list; empty where there is one form."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in {Union, types.UnionType} or len(_specs(annotation)) > 1:
        return []
    forms = [form for form in get_args(annotation) if form is not types.NoneType]
    return forms if len(forms) > 1 else []


def _is_called(form: Any, name: str) -> bool:
    """Whether pydantic calls a form of a field so."""
    while get_origin(form) is Annotated:
        form = get_args(form)[0]
    kind = get_origin(form) or form
    known = "literal" if kind is Literal else kind.__name__
    return name == known or name.startswith(f"{known}[")


def _specs(annotation: Any) -> list[type[BaseModel]]:
    """The spec classes that a value of this annotation may be."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _specs(get_args(annotation)[0])
    if origin in {Union, types.UnionType}:
        return [spec for member in get_args(annotation) for spec in _specs(member)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _tags(spec: type[BaseModel]) -> set[Any]:
    return {field.default for name, field in spec.model_fields.items() if name in {"kind", "format"}}


def _inside(annotation: Any, owner: type[BaseModel] | None, step: int | str) -> Any:
    if owner is not None:
        field = owner.model_fields.get(str(step))
        return field.annotation if field else Any
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    arguments = get_args(annotation)
    return arguments[-1] if get_origin(annotation) in {list, dict} and arguments else Any


def _said(details: ErrorDetails, owner: type[BaseModel] | None) -> str:
    kind, given = details["type"], details["input"]
    fields = list(owner.model_fields) if owner else []
    if kind == "extra_forbidden":
        name = str(details["loc"][-1])
        expected = f"; expected one of {', '.join(fields)}" if fields else ""
        return f"unknown field{nearest(name, fields) or expected}"
    if kind == "missing":
        field = owner.model_fields.get(str(details["loc"][-1])) if owner else None
        return f"required, but not given ({field.description})" if field and field.description else "required"
    if kind in {"union_tag_not_found", "union_tag_invalid", "literal_error"}:
        return _choice(details)
    return f"{_message(details)}{'' if kind in _MOVED else f', got {shown(given)}'}"


def _choice(details: ErrorDetails) -> str:
    context, given = details.get("ctx", {}), details["input"]
    if details["type"] == "literal_error":
        expected = str(context["expected"])
        field = ""
    else:
        name = str(context["discriminator"]).strip("'")
        expected, field = str(context.get("expected_tags", "")), f"{name}: "
        if details["type"] == "union_tag_not_found":
            return f"required field {name!r} is not given"
        given = context["tag"]
    known = [word.strip().strip("'") for word in expected.replace(" or ", ", ").split(",")]
    return f"{field}expected {expected}, got {shown(given)}{nearest(str(given), known)}"


def _message(details: ErrorDetails) -> str:
    message = details["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if message.startswith("Input should "):
        message = "should " + message.removeprefix("Input should ")
    return message


def shown(value: Any) -> str:
    """``repr`` cut to a length that leaves a message readable, and without credentials."""
    text = repr(value)
    if holds_credentials(text):
        return "a value with credentials in it (***)"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
