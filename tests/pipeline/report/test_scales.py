from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.report.scales import Axis, linear_axis, log_axis, short_number

FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@given(FINITE, FINITE)
@example(0.0, -5e-324)
def test_linear_ticks_cover_the_range_and_are_few(one: float, other: float) -> None:
    low, high = sorted((one, other))
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-3):
        high = low
    axis = linear_axis(low, high)
    assert axis.low <= low + 1e-6 * max(high - low, abs(low), 1e-194)
    assert axis.high >= high - 1e-6 * max(high - low, abs(high), 1e-194)
    assert 2 <= len(axis.ticks) <= 8
    assert list(axis.ticks) == sorted(set(axis.ticks))


@given(st.floats(1e-9, 1e6), st.floats(1, 1e6))
def test_log_ticks_cover_the_range_and_are_few(low: float, ratio: float) -> None:
    axis = log_axis(low, low * ratio)
    assert axis.low <= low * 1.001
    assert axis.high >= low * ratio * 0.999
    assert 2 <= len(axis.ticks) <= 20
    assert all(tick > 0 for tick in axis.ticks)


def test_places() -> None:
    axis = Axis(0.0, 10.0, (0.0, 10.0))
    assert [axis.place(value, 100, 200) for value in (-5, 0, 2.5, 10, 99)] == [100, 100, 125, 200, 200]
    decades = Axis(0.01, 1.0, (0.01, 0.1, 1.0), log=True)
    assert decades.place(0.1, 0, 100) == pytest.approx(50)
    assert decades.place(0.0, 0, 100) == 0
    assert math.isfinite(decades.place(1e-300, 0, 100))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (5, "5"),
        (0.05, "0.05"),
        (1500, "1.5k"),
        (2e6, "2M"),
        (3e9, "3G"),
        (1e-4, "1e\u22124"),
        (-2, "\u22122"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short_number(value) == text
