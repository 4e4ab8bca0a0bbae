"""Units as ranges, held against sets."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from pipeline.collection.units import Units


@given(num_units=st.integers(0, 40), committed=st.lists(st.integers(0, 60)))
def test_missing_units_are_those_of_the_set_difference(num_units: int, committed: list[int]) -> None:
    units = Units.missing(num_units, committed)
    expected = sorted({*range(num_units)} - {*committed})
    assert list(units) == expected
    assert len(units) == len(expected)
    assert bool(units) == bool(expected)
    assert units.last == (expected[-1] if expected else -1)
    assert all((unit in units) == (unit in expected) for unit in range(-1, 61))
    assert all(one and one.step == 1 for one in units.ranges)
    assert all(before.stop < after.start for before, after in zip(units.ranges, units.ranges[1:], strict=False))


def test_ten_million_units_take_no_room() -> None:
    tracemalloc.start()
    units = Units.missing(10**7, [])
    assert len(units) == 10**7
    assert next(iter(units)) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000
