"""A store gets more rows at a unit boundary; what was there stays, and open readers go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.store.reader import Store
from schemas.errors import IncompleteError, MismatchError, SpecError


def data_files(url: str) -> list[Path]:
    files = [path for path in Path(url).rglob("*") if path.is_file()]
    return [path for path in files if path.suffix == ".arrow" or "/c/" in path.as_posix()]


@pytest.mark.parametrize("form", [{}, {"dtype": "int8"}, {"layout": "arrow"}], ids=["zarr", "zarr-int8", "arrow"])
def test_more_rows_leave_old_units_alone(sample: Any, local_url: str, form: dict[str, str]) -> None:
    small, large = sample(num_rows=64, **form), sample(num_rows=120, **form)
    small.write_all(local_url)
    reader = Store.open(local_url)
    held = {path: path.read_bytes() for path in data_files(local_url)}
    assert len(held) == 2 * len(small.arrays) * (2 if form.get("dtype") else 1)
    writer = large.open(local_url)
    assert [*writer.committed()] == [0, 1]
    small.require_equal(reader)
    between = Store.open(local_url)
    assert between.num_rows == 64
    small.require_equal(between)
    assert between.verify(deep=True) == []
    with pytest.raises(IncompleteError, match="lacks 2 of 4"):
        writer.finish()
    large.write(writer, [2, 3])
    assert writer.finish().num_rows == 120
    large.require_equal(Store.open(local_url))
    assert Store.open(local_url).verify(deep=True) == []
    small.require_equal(reader)
    assert {path: path.read_bytes() for path in held} == held
    if form.get("layout") == "arrow":
        return
    hook = next(iter(large.arrays))
    group = zarr.open_group(local_url, mode="r")
    np.testing.assert_array_equal(group[f"activations/{hook}"][:], large.expected[hook])  # type: ignore[index]
    if form.get("dtype"):
        scales = Store.open(local_url).read_scales(hook, 0, 120)
        np.testing.assert_array_equal(group[f"scales/{hook}"][:], scales)  # type: ignore[index]


def test_every_pass_of_a_complete_store_must_grow(sample: Any, local_url: str) -> None:
    """The manifest would otherwise lose the hook points that stayed behind."""
    small, large = sample(num_rows=64), sample(num_rows=96)
    more = sample(num_rows=96, widths={"more": 2})
    small.write_all(local_url)
    writer = more.open(local_url)
    more.write(writer, range(3))
    with pytest.raises(IncompleteError, match=r"blocks\.0\.hook_mlp_in"):
        writer.finish()
    assert Store.open(local_url).num_rows == 64
    large.write(large.open(local_url), [2])
    assert writer.finish().num_rows == 96
    store = Store.open(local_url)
    large.require_equal(store)
    more.require_equal(store)


def test_an_unfinished_plan_may_shrink_to_whole_units(sample: Any, local_url: str) -> None:
    large, small = sample(num_rows=120), sample(num_rows=64)
    writer = large.open(local_url)
    large.write(writer, [0, 3])
    assert small.write_all(local_url).num_rows == 64
    small.require_equal(Store.open(local_url))
    again = large.open(local_url)
    assert [*again.committed()] == [0, 1, 3]
    large.write(again, [2])
    again.finish()
    large.require_equal(Store.open(local_url))


def test_part_of_a_complete_store_is_there_already(sample: Any, local_url: str) -> None:
    manifest = sample(num_rows=120).write_all(local_url)
    writer = sample(num_rows=64).open(local_url)
    assert [*writer.committed()] == [0, 1] == [*range(writer.num_units)]
    assert writer.finish() == manifest
    with pytest.raises(MismatchError, match="max_tokens=120"):
        sample(num_rows=64, widths={"more": 2}).open(local_url)


def test_a_partial_last_unit_cannot_grow(sample: Any, local_url: str) -> None:
    sample(num_rows=75).write_all(local_url)
    with pytest.raises(MismatchError, match="whole units of 32 rows"):
        sample(num_rows=120).open(local_url)


def test_a_unit_is_what_the_plan_says(sample: Any, local_url: str) -> None:
    one = sample()
    writer = one.open(local_url)
    arrays = {hook: words[:32] for hook, words in one.arrays.items()}
    options: dict[str, Any] = {"worker": "w", "attempt": 0, "seconds": {}}
    with pytest.raises(MismatchError, match=r"expected token rows \[0, 32\)"):
        writer.write_unit(0, arrays, one.tokens.slice(1, 33), **options)
    with pytest.raises(MismatchError, match="expected arrays"):
        writer.write_unit(0, {"other": arrays.popitem()[1]}, one.tokens.slice(0, 32), **options)
    with pytest.raises(MismatchError, match="expected arrays"):
        writer.write_unit(
            2, {hook: words[:32] for hook, words in one.arrays.items()}, one.tokens.slice(64, 75), **options
        )
    with pytest.raises(ValueError, match="unit 3"):
        writer.unit_rows(3)
    writer.write_unit(0, {hook: words[:32] for hook, words in one.arrays.items()}, one.tokens.slice(0, 32), **options)
    other = sample(widths={"more": 2})
    second = other.open(local_url)
    changed = other.tokens.slice(0, 32)
    changed.token_id[5] += 1
    with pytest.raises(MismatchError, match="the token table has changed"):
        second.write_unit(0, {"more": other.arrays["more"][:32]}, changed, **options)


def test_plans_that_cannot_be(sample: Any, local_url: str) -> None:
    with pytest.raises(SpecError, match="at least one row"):
        sample(num_rows=0).open(local_url)
    with pytest.raises(SpecError, match="at least one hook point"):
        sample(widths={}).open(local_url)
    with pytest.raises(SpecError, match="not a multiple"):
        sample(chunk_rows=9).open(local_url)
    assert not Path(local_url).exists()
