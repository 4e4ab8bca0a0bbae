"""Writers that hand rows over: exactly the rows that a store gets, with the statistics that its ledger has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_job import built_table, small_spec

from pipeline.collection.handing import TeeWriter, open_block_collector
from pipeline.collection.prepare import prepare
from pipeline.collection.unit import UnitCollector
from pipeline.store.reader import Store
from pipeline.store.unit_objects import StoredRows

Handed = dict[tuple[int, str], StoredRows]


def keep(found: Handed) -> Any:
    def hand_over(unit: int, hook: str, rows: StoredRows) -> None:
        scales = None if rows.scales is None else rows.scales.copy()
        found[unit, hook] = StoredRows(rows.words.copy(), scales)

    return hand_over


@pytest.mark.parametrize("storage", [{}, {"dtype": "int8", "lossy": True}, {"codec": "zstd", "dtype": "float32"}])
def test_what_is_handed_over_is_what_is_stored(
    model: Path, corpus: Path, tmp_path: Path, storage: dict[str, Any]
) -> None:
    spec = small_spec(model, corpus, tmp_path / "store", storage=storage)
    one = prepare(spec, built_table(spec))[0].of
    handed: Handed = {}
    collector = open_block_collector(one, keep(handed), worker="test")
    units = range(one.num_units)
    entries = [collector.collect(unit) for unit in units]
    assert not (tmp_path / "store").exists()

    teed: Handed = {}
    plain = UnitCollector.open(one)
    both = replace(plain, writer=TeeWriter.around(plain.writer, keep(teed)))
    for unit in units:
        both.collect(unit)
    both.writer.finish()
    store = Store.open(spec.output)
    for unit, entry in zip(units, entries, strict=True):
        start, stop = both.writer.unit_rows(unit)
        for hook in spec.hook_points:
            for found in (handed, teed):
                rows = found[unit, hook]
                np.testing.assert_array_equal(rows.words, store.read_rows(hook, start, stop))
                np.testing.assert_array_equal(rows.values(store.dtype), store.read_values(hook, start, stop))
            ledger = store.entry(both.writer.pass_id, unit).statistics[hook]
            ours = entry.statistics[hook]
            assert (ours.mean, ours.m2, ours.norm_sum, ours.count) == (
                ledger.mean, ledger.m2, ledger.norm_sum, ledger.count,
            )  # fmt: skip


def test_a_block_can_be_made_again(model: Path, corpus: Path, tmp_path: Path) -> None:
    spec = small_spec(model, corpus, tmp_path / "store")
    one = prepare(spec, built_table(spec))[0].of
    first, second = {}, {}  # type: ignore[var-annotated]
    for found in (first, second):
        open_block_collector(one, keep(found), worker="test").collect(1, attempt=len(first))
    for place, rows in first.items():
        np.testing.assert_array_equal(rows.words, second[place].words)
