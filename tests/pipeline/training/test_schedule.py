"""Schedules are pure functions; the length of a run counts short last batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.schedule import learning_rate_factor, ramp, total_steps
from schemas.train import Schedule


def test_warm_up_constant_decay() -> None:
    schedule = Schedule(warmup_fraction=0.1, decay_fraction=0.2)
    factors = [learning_rate_factor(schedule, step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:80] == [1.0] * 71
    assert factors[90] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.05)


def test_no_warm_up_no_decay() -> None:
    schedule = Schedule(warmup_fraction=0, decay_fraction=0)
    assert {learning_rate_factor(schedule, step, 7) for step in range(7)} == {1.0}


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 500))
def test_factor_is_always_a_positive_share(warmup: float, decay: float, num_steps: int) -> None:
    schedule = Schedule(warmup_fraction=warmup, decay_fraction=decay)
    assert all(0 < learning_rate_factor(schedule, step, num_steps) <= 1 for step in range(num_steps))


@given(st.integers(1, 300), st.integers(1, 100), st.integers(1, 50))
def test_steps_are_those_a_feed_takes(num_rows: int, rows_per_epoch: int, batch_rows: int) -> None:
    seen = steps = left = 0
    while seen < num_rows:
        left = left or rows_per_epoch
        taken = min(batch_rows, left)
        seen, left, steps = seen + taken, left - taken, steps + 1
    assert total_steps(num_rows, rows_per_epoch, batch_rows) == steps


def test_ramp() -> None:
    assert [ramp(0.5, progress) for progress in (0.0, 0.25, 0.5, 0.9)] == [0.0, 0.5, 1.0, 1.0]
    assert ramp(0.0, 0.0) == 1.0
