"""Sizes as people and specs write them."""

from __future__ import annotations

import pytest

from schemas.fields import about_bytes


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
