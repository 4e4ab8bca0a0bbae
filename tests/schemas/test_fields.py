"""Sizes as people and specs write them; values that specs hand on."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.fields import DEEPEST, about_bytes, require_plain_json
from schemas.model import ModelSpec


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (708_085_647, "675 MiB"),
        (1023 * 2**20, "1023 MiB"),
        (3e13, "27.3 TiB"),
    ],
)
def test_about_bytes_is_for_people(size_bytes: float, text: str) -> None:
    assert about_bytes(size_bytes) == text


def nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


@pytest.mark.parametrize("kind", ["list", "mapping"])
def test_values_that_are_handed_on_are_shallow(kind: str) -> None:
    assert ModelSpec(path="x", arguments={"x": nested(DEEPEST - 1, kind)}).arguments
    for depth in (DEEPEST, 300, 5000):
        with pytest.raises(ValidationError, match="nested deeper than 32 levels"):
            ModelSpec(path="x", arguments={"x": nested(depth, kind)})
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested deeper"):
        require_plain_json(endless)


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_values_that_are_handed_on_are_json(number: float) -> None:
    with pytest.raises(ValidationError, match="no number of JSON"):
        ModelSpec(path="x", arguments={"x": [{"y": number}]})
