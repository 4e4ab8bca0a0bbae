"""Many dictionaries in few words: a base, and lists of values for some of its fields."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import PydanticUndefined

from schemas.dictionary import DictionarySpec
from schemas.errors import nearest
from schemas.fields import JsonObject, Name, Spec

MAX_DICTIONARIES = 256
"""Of one sweep. Each needs memory for its weights, gradients and optimiser at the same time."""


class Sweep(Spec):
    """A base dictionary and lists of values over its fields; becomes ordinary ``dictionaries`` before anything else
    happens."""

    name: Name | None = None
    """What the names of all its dictionaries begin with; None: nothing."""
    base: JsonObject
    """Fields of DictionarySpec that all have in common; no name."""
    over: Annotated[JsonObject, Field(min_length=1)]
    """Field, nested ones with dots (``activation.k``), -> its values: a list, or label -> value. Names are made from
    the labels. Without them the label of a number is the last part of the field and the number (``k32``), of text the
    text, of a mapping its ``kind``."""
    mode: Literal["product", "zip"] = "product"
    """``product``: every combination, the last field changes fastest. ``zip``: first values together, then second
    values, and so on; all fields have as many."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "name" in self.base:
            raise ValueError("base has a name, but names are made from the values; what they begin with is sweep.name")
        for field, values in self.over.items():
            first = field.partition(".")[0]
            if first not in DictionarySpec.model_fields or first == "name":
                known = [known for known in DictionarySpec.model_fields if known != "name"]
                raise ValueError(f"over: dictionaries have no field {field!r} to sweep{nearest(first, known)}")
            if not isinstance(values, list | dict) or not values:
                raise ValueError(f"over: {field} takes a list of values, or label -> value, got {values!r}")
        if self.mode == "zip" and len({len(values) for values in self.over.values()}) > 1:
            counts = ", ".join(f"{field} has {len(values)}" for field, values in self.over.items())
            raise ValueError(f"mode: zip takes values together, but {counts}: give as many each, or use mode: product")
        if (count := self._count()) > MAX_DICTIONARIES:
            raise ValueError(f"{count:,} dictionaries, at most {MAX_DICTIONARIES} are trained by one sweep: split it")
        return self

    def expanded(self) -> list[DictionarySpec]:
        """The dictionaries, in order.

        Raises:
            ValueError: one of them is not valid, or two have one name.
        """
        found: dict[str, DictionarySpec] = {}
        for name, fields in self._combinations():
            if name in found:
                raise ValueError(
                    f"two of its dictionaries would be called {name!r}: give the values labels, "
                    "as in over: {activation: {narrow: {kind: topk, k: 8}, wide: {kind: topk, k: 64}}}"
                )
            found[name] = _validated(name, fields)
        return list(found.values())

    def _count(self) -> int:
        counts = [len(values) for values in self.over.values()]
        if self.mode == "zip":
            return counts[0]
        count = 1
        for each in counts:
            count *= each
        return count

    def _combinations(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and fields of each."""
        labelled = [_labelled(field, values) for field, values in self.over.items()]
        combine: Any = zip if self.mode == "zip" else itertools.product
        for chosen in combine(*labelled):
            fields = copy.deepcopy(self.base)
            for field, (_, value) in zip(self.over, chosen, strict=True):
                _place(fields, field.split("."), value)
            labels = [label for label, _ in chosen]
            yield "-".join([self.name, *labels] if self.name else labels), fields


def expand(data: Any) -> Any:
    """Fields of a train job with their ``sweep``, if there is one, turned into ``dictionaries`` after those listed.

    What is not of the right form is left as it is, for the validation of fields to say so.

    Raises:
        ValueError: a sweep does not make valid dictionaries.
    """
    if not isinstance(data, Mapping) or not data.get("sweep"):
        return data
    listed = data.get("dictionaries", [])
    given = [data["sweep"]] if isinstance(data["sweep"], Mapping) else data["sweep"]
    if not isinstance(given, list) or not isinstance(listed, list):
        return data
    try:
        sweeps = [Sweep.model_validate(each) for each in given]
    except ValidationError:
        return {**data, "sweep": given}
    made = [dictionary for sweep in sweeps for dictionary in sweep.expanded()]
    return {**data, "sweep": [], "dictionaries": [*listed, *made]}


def _labelled(field: str, values: list[Any] | dict[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(values, dict):
        return [(_in_name(str(label)), value) for label, value in values.items()]
    return [(_label(field.rpartition(".")[2], value), value) for value in values]


def _label(field: str, value: Any) -> str:
    if isinstance(value, Mapping) and "kind" in value:
        return _in_name(str(value["kind"]))
    if isinstance(value, bool):
        return field if value else f"no_{field}"
    if isinstance(value, int | float):
        return _in_name(f"{field}{value:g}" if isinstance(value, float) else f"{field}{value}")
    if isinstance(value, str):
        return _in_name(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return _in_name("_".join(value))
    return _in_name(f"{field}{value}")


def _in_name(text: str) -> str:
    """Only what a name may hold."""
    return re.sub(r"[^A-Za-z0-9_.\-]+", "_", text).strip("_-.") or "_"


def _place(fields: dict[str, Any], path: Sequence[str], value: Any) -> None:
    first = path[0]
    if len(path) > 1 and fields.get(first) is None:
        default = DictionarySpec.model_fields[first].default if first in DictionarySpec.model_fields else None
        is_plain = default is None or default is PydanticUndefined
        fields[first] = default.model_dump() if isinstance(default, BaseModel) else {} if is_plain else default
    if len(path) == 1:
        fields[first] = copy.deepcopy(value)
    elif isinstance(fields[first], dict):
        _place(fields[first], path[1:], value)
    else:
        raise ValueError(f"over: {first} is {fields[first]!r}, which has no field {'.'.join(path[1:])!r}")


def _validated(name: str, fields: Mapping[str, Any]) -> DictionarySpec:
    try:
        return DictionarySpec.model_validate({**fields, "name": name})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(_path(first["loc"], fields))
        said = "unknown field" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise ValueError(f"dictionary {name!r} of the sweep: {f'{path}: ' if path else ''}{said}") from None


def _path(loc: Sequence[int | str], fields: Any) -> Iterator[str]:
    """The field; pydantic puts the kind of a union's member between it and what is in it."""
    here = fields
    for step in loc:
        if isinstance(here, Mapping) and step not in here and step == here.get("kind"):
            continue
        yield str(step)
        here = here.get(step) if isinstance(here, Mapping) else None
