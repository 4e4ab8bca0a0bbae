"""Who is taken for dead: workers that do not get on, not those that are slow, idle or not yet placed."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from workers.pulse import Pulse, Pulses

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


class Watched:
    """One worker on a clock that is turned by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.steps = 0
        self.is_silent = False
        self.pulses = Pulses(10.0, clock=lambda: self.now_s)
        self.never = [ray.remote(num_cpus=10_000)(lambda: 0).remote()]
        self.pulses.begin(0, self.ask(0))

    def ask(self, worker: int) -> list[Any]:
        return self.never if self.is_silent else [ray.put(Pulse(self.steps, "node"))]

    def after(self, seconds: float, *, busy: bool, steps: int = 0) -> list[tuple[int, str]]:
        """Who hangs after ``seconds`` in which the worker did ``steps`` in each."""
        for _ in range(int(seconds)):
            self.now_s += 1
            self.steps += steps
            self.pulses.look(self.ask)
        return self.pulses.hung(lambda worker: busy)


@pytest.fixture
def watched() -> Any:
    one = Watched()
    yield one
    ray.cancel(one.never[0])


def test_a_slow_unit_is_no_hang_as_long_as_its_batches_are_run(watched: Watched) -> None:
    assert watched.after(100, busy=True, steps=1) == []


def test_a_worker_without_units_need_not_get_on(watched: Watched) -> None:
    assert watched.after(100, busy=False) == []
    watched.pulses.got_on(0)  # it is given a unit
    assert watched.after(9, busy=True) == []


def test_a_worker_that_stands_still_with_a_unit_hangs(watched: Watched) -> None:
    assert watched.after(3, busy=True, steps=1) == []
    ((worker, reason),) = watched.after(14, busy=True)
    assert worker == 0
    assert "no batch, no object for 10 s (workers.lease_timeout_s)" in reason
    watched.pulses.end(0)
    assert watched.after(20, busy=True) == []


def test_a_process_that_answers_nothing_hangs_even_without_a_unit(watched: Watched) -> None:
    assert watched.after(3, busy=False) == []
    assert watched.pulses.nodes(0) == ("node",)
    watched.is_silent = True
    ((_, reason),) = watched.after(16, busy=False)
    assert "no answer from its process" in reason


def test_a_worker_that_was_never_placed_may_wait(watched: Watched) -> None:
    watched.pulses.end(0)
    watched.is_silent = True
    watched.pulses.begin(0, watched.ask(0))
    assert watched.after(100, busy=False) == []
    assert watched.pulses.nodes(0) == ()
