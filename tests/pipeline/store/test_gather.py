"""Gathering from remote stores: ranges of one object are read side by side, and give what one after the other gives."""

from __future__ import annotations

from collections.abc import Callable
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from schemas.errors import CorruptionError

Maker = Callable[..., Any]
HOOK = "blocks.0.hook_mlp_in"
FORMS: list[dict[str, str]] = [
    {}, {"codec": "zstd"}, {"codec": "bf16"}, {"dtype": "int8"}, {"layout": "arrow"},
    {"layout": "arrow", "dtype": "int8"},
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()) or "plain")
def test_ranges_of_one_shard_are_read_at_once(
    sample: Maker, memory_url: str, monkeypatch: pytest.MonkeyPatch, form: dict[str, str]
) -> None:
    """Two reads of each pair wait for each other: read one by one, they would wait for ever."""
    sample(chunk_rows=2, shard_rows=64, **form).write_all(memory_url)
    store = Store.open(memory_url)
    rows = np.array([1, 40, 9, 41, 0, 20, 9])  # four runs of chunks, in one shard
    expected = store.read_values(HOOK, 0, 64)[rows]
    np.testing.assert_array_equal(store.gather_values(HOOK, rows), expected)
    barrier, whole = Barrier(2), Objects.read_into
    met: list[int] = []

    def read_into(objects: Objects, key: str, start: int, out: memoryview) -> int:
        if "activations" in key and len(out) > 4:  # scales of a lossy store are read chunk by chunk
            met.append(barrier.wait(timeout=20))
        return whole(objects, key, start, out)

    monkeypatch.setattr(Objects, "read_into", read_into)
    np.testing.assert_array_equal(store.gather_values(HOOK, rows), expected)
    assert len(met) >= 4


def test_damage_in_one_of_the_ranges_is_an_error(sample: Maker, memory_url: str) -> None:
    sample(chunk_rows=2, shard_rows=64, codec="zstd").write_all(memory_url)
    objects = Objects(memory_url)
    (key,) = objects.list(f"activations/{HOOK}/c/0/")
    data = bytearray(objects.read(key))
    data[len(data) // 2] ^= 1
    objects.write(key, data)
    with pytest.raises(CorruptionError, match=key):
        Store.open(memory_url).gather_values(HOOK, np.arange(0, 64, 4))
