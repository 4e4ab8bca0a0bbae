"""Runs of rows: sections come back as they were written, and damage is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.shuffling.runs import Column, Runs
from pipeline.store.objects import Objects
from schemas.errors import CorruptionError

COLUMNS = (
    Column("row", np.dtype("<i8")),
    Column("held_out", np.dtype("?")),
    Column("words/a", np.dtype("<u2"), (5,)),
    Column("words/b", np.dtype("<f4"), (3,)),
)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(Objects(str(tmp_path / "runs")), COLUMNS)


def block(num_rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(num_rows)
    return {
        "row": rng.integers(0, 2**60, num_rows),
        "held_out": rng.random(num_rows) < 0.5,
        "words/a": rng.integers(0, 2**16, (num_rows, 5)).astype("<u2"),
        "words/b": rng.standard_normal((num_rows, 3)).astype("<f4"),
    }


def test_sections_come_back(runs: Runs) -> None:
    values = block(50)
    places = [np.arange(50)[::-1][:20], np.array([], dtype=np.int64), np.arange(30)]
    assert runs.write(1, 7, iter(values.items()), places) == 50 * runs.row_bytes
    for section, rows in enumerate(places):
        found = runs.read(1, 7, section)
        assert [*found] == [*values]
        for name, column in found.items():
            assert column.dtype == values[name].dtype
            np.testing.assert_array_equal(column, values[name][rows])


def test_a_run_exists_when_its_receipt_does(runs: Runs) -> None:
    for task in (3, 12):
        runs.write(2, task, iter(block(4).items()), [np.arange(4)])
    assert runs.done(2) == [3, 12]
    runs.objects.delete("2/00000003.json")
    assert runs.done(2) == [12]
    with pytest.raises(CorruptionError, match=r"receipt of a run, got no object; delete .* and run the shuffle again"):
        runs.read(2, 3, 0)
    runs.delete(1)
    assert runs.done(2) == [12]
    runs.delete()
    assert runs.objects.list() == []


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "receipt"])
def test_damage_is_found(runs: Runs, damage: str) -> None:
    runs.write(1, 0, iter(block(9).items()), [np.arange(5), np.arange(5, 9)])
    path = Path(runs.objects.url, "1/00000000.rows")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
    if damage == "gone":
        path.unlink()
    elif damage == "receipt":
        receipt = Path(runs.objects.url, "1/00000000.json")
        receipt.write_bytes(receipt.read_bytes().replace(b"[5,4]", b"[4,5]"))
    else:
        path.write_bytes(data[:-2] if damage == "cut" else data)
    with pytest.raises(CorruptionError, match="00000000"):
        runs.read(1, 0, 1)
