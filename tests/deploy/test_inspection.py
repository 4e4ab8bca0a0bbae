"""What ``store info`` says of a store, as data and in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deploy import inspection
from pipeline.store.rows import TokenRows
from pipeline.store.words import to_words
from pipeline.store.writer import StoreWriter
from schemas.fingerprint import fingerprint
from schemas.store import PassRecord, Shuffled, StoreRecord


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Three units of 32 rows, with two NaN rows in unit 1, an infinite one in unit 2 and row 5 far out."""
    identity = {"model": {"path": "m", "dtype": "float32"}}
    record = StoreRecord(
        fingerprint=fingerprint(identity), identity=identity, table_fingerprint="t", dtype="float32", chunk_rows=8,
        shard_rows=32, codec="none", table_url="", specials={}, spec={}, versions={},
        shuffled=Shuffled(store_fingerprint="s", store_url="runs/store", table_fingerprint="u", seed=7),
    )  # fmt: skip
    values = np.ones((96, 4), dtype=np.float32)
    values[[40, 41], 2], values[70], values[5] = np.nan, np.inf, 30
    row = np.arange(96)
    tokens = TokenRows(row, row % 9, row, row * 0, row < 0)
    one = PassRecord(hook_points={"h": 4}, batch_tokens=8, covariance=True, outlier_tokens=2)
    writer = StoreWriter.open(str(tmp_path / "store"), record, one, num_rows=96)
    for unit in range(3):
        part = slice(unit * 32, unit * 32 + 32)
        words = {"h": to_words(values[part], "float32")}
        writer.write_unit(unit, words, tokens.slice(part.start, part.stop), worker="w", attempt=0, seconds={})
    writer.finish()
    return str(tmp_path / "store")


def test_statistics_are_shown_and_are_json(url: str) -> None:
    facts = inspection.store_facts(url)
    point = json.loads(json.dumps(facts))["hook_points"]["h"]
    assert point["outliers"][0] == {"row": 5, "token_id": 5, "norm": 60.0}
    assert len(point["outliers"]) == 2
    assert point["non_finite_units"] == {"1": {"num_nan": 2, "num_inf": 0}, "2": {"num_nan": 0, "num_inf": 1}}
    assert point["norm_quantiles"]["0.5"] == pytest.approx(2, rel=0.0055)
    assert point["norm_quantiles"]["0.999"] == pytest.approx(60, rel=0.0055)
    assert point["covariance"]
    text = "\n".join(inspection.store_lines(facts))
    assert "h: greatest norms 60 (row 5, token 5), 2 (row 0, token 0)" in text
    assert "h: rows that are not finite in units 1 (2 NaN, 0 Inf), 2 (0 NaN, 1 Inf)" in text
    assert "with seed 7, from runs/store" in text
