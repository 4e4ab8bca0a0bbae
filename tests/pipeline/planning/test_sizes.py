"""Sizes against the stores that are really written, and money against the sums written out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "exporting"))

from export_source import CHUNK_ROWS, SHARD_ROWS, write_source

from pipeline.collection.units import Units
from pipeline.planning import money
from pipeline.planning.sizes import short_units, unit_sizes
from pipeline.store import layout
from pipeline.store.ledger import Ledger
from schemas.collect import StatisticsSpec, Storage
from schemas.plan import Prices

AMOUNT = st.floats(0, 1e6)


@pytest.mark.parametrize(
    ("layout_", "dtype", "covariance"),
    [
        ("zarr", "bfloat16", False), ("zarr", "float32", True), ("zarr", "int8", False),
        ("arrow", "float16", False), ("arrow", "float8_e4m3", True),
    ],
)  # fmt: skip
def test_sizes_are_those_of_a_store(tmp_path: Path, layout_: str, dtype: str, covariance: bool) -> None:
    statistics = {"covariance": covariance, "outlier_tokens": 2}
    store = write_source(str(tmp_path / "store"), layout=layout_, dtype=dtype, statistics=statistics)
    storage = Storage.model_validate(
        {"layout": layout_, "dtype": dtype, "lossy": store.record.lossy, "chunk_rows": CHUNK_ROWS}
        | {"shard_rows": SHARD_ROWS}
    )
    for pass_, one in store.passes.items():
        ledger = Ledger(store.objects, pass_, store.fingerprint)
        for entry in ledger.entries([*range(store.num_units)]):
            planned = unit_sizes(storage, StatisticsSpec.model_validate(statistics), one.hook_points, entry.num_rows)
            for hook in one.hook_points:
                real = sum(receipt.size_bytes for name, receipt in entry.objects.items() if name.split("/")[-1] == hook)
                if layout_ == "zarr":
                    assert planned.objects[hook] == real
                else:
                    assert planned.objects[hook] == pytest.approx(real, abs=160)
            # Each object, and the entry itself.
            assert planned.num_objects == len(entry.objects) + 1
            real = store.objects.size(layout.ledger_key(pass_, entry.unit))
            assert planned.ledger == pytest.approx(real, rel=0.7)


def test_the_estimates_are_right_at_real_widths(tmp_path: Path) -> None:
    """Token rows and ledger of a unit such as people have, where their share matters."""
    import numpy as np

    from pipeline.store.rows import TokenRows

    rng = np.random.default_rng(0)
    num_rows = 32768
    row = np.arange(num_rows)
    tokens = TokenRows(row, rng.zipf(1.2, num_rows) % 49152, row // 700, row % 256, row // 700 % 20 == 0)
    planned = unit_sizes(Storage(), StatisticsSpec(), {"resid": 576}, num_rows)
    assert len(tokens.to_parquet()) < planned.tokens * 1.2
    assert (planned.tokens + planned.ledger) / planned.size_bytes < 0.01


@given(st.integers(1, 1000), st.integers(1, 50), st.data())
def test_units_are_counted_by_their_rows(num_rows: int, shard_rows: int, data: st.DataObject) -> None:
    units = range(layout.num_units(num_rows, shard_rows))
    chosen = data.draw(st.lists(st.sampled_from(units), unique=True))
    missing = Units.missing(len(units), {*units} - {*chosen})
    found = short_units(missing, num_rows, shard_rows)
    bounds = [layout.unit_rows(unit, num_rows, shard_rows) for unit in chosen]
    assert sum(rows * count for rows, count in found.items()) == sum(stop - start for start, stop in bounds)
    assert sum(found.values()) == len(chosen)


@given(AMOUNT, AMOUNT, AMOUNT, AMOUNT)
def test_the_break_even_is_the_first_number_that_pays(collect: float, write: float, keep: float, read: float) -> None:
    found = money.reuse(collect=collect, write=write, keep=keep, read=read)
    assert found is not None

    def pays(reads: int) -> bool:
        stored, anew = collect + write + keep + reads * read, reads * collect
        return stored <= anew * (1 + 1e-9) + 1e-9

    if found.break_even_reads is None:
        assert collect <= read
    elif found.break_even_reads < 10**6:
        assert pays(found.break_even_reads)
        assert found.break_even_reads == 1 or not (
            collect + write + keep + (found.break_even_reads - 1) * (read - collect) < -1e-6 * (1 + collect)
        )


def test_the_published_comparison() -> None:
    """An 8-billion-parameter model on one H100 at 3 dollars an hour, 10**9 tokens of one hook point of width 4,096 for
    a month at 0.023 dollars: 34 dollars to compute, 188 to keep."""
    prices = Prices(storage_gb_month=0.023, device_hour=3.0, get_thousand=0.0, egress_gb=0.0, put_thousand=0.0)
    collect = money.computing(prices, 1e9 / 24_600 / 3600)
    keep = money.keeping(prices, size_bytes=8192e9, months=1)
    assert collect == pytest.approx(33.9, abs=0.05)
    assert keep == pytest.approx(188.4, abs=0.05)
    found = money.reuse(collect=collect, write=0.0, keep=keep, read=0.0)
    assert found is not None
    assert found.break_even_reads == 7


def test_an_unknown_price_is_no_zero() -> None:
    assert money.keeping(Prices(), size_bytes=1e12, months=1) is None
    assert money.total(1.0, None) is None
    assert money.reading(Prices(get_thousand=1.0), size_bytes=1.0, gets=1.0) is None
    assert money.reuse(collect=1.0, write=1.0, keep=None, read=1.0) is None
