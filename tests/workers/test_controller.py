"""The controller's decisions, without Ray: a simulated pool under every interleaving that hypothesis thinks of."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.collect import CollectWorkers
from schemas.errors import HeadworksError, JobError, ResourceError, UnreachableError
from workers.controller import Controller
from workers.decisions import (
    CapacityChanged,
    Decision,
    Event,
    Fail,
    Finish,
    LeaseUnit,
    RetryUnit,
    SetAside,
    StartWorker,
    StopWorker,
    UnitCommitted,
    UnitFailed,
    WorkerDied,
    WorkerFailed,
    WorkerReady,
)


class SimulatedPool:
    """Carries out decisions as the real pool does and remembers what it was told."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.loading: list[int] = []
        self.leases: dict[int, list[int]] = {}
        self.commits: dict[int, int] = defaultdict(int)
        self.attempts: dict[int, list[int]] = defaultdict(list)
        self.retries: list[RetryUnit] = []
        self.set_aside: list[SetAside] = []
        self.error: HeadworksError | None = None
        self.is_finished = False
        self.carry_out(controller.start())

    def carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            assert not self.is_over, "no decision follows the end"
            match decision:
                case StartWorker(worker=worker):
                    assert worker not in self.loading
                    assert worker not in self.leases
                    self.loading.append(worker)
                case StopWorker(worker=worker):
                    self._forget(worker)
                case LeaseUnit(worker=worker, unit=unit, attempt=attempt):
                    assert unit not in self.leased, "one lease at a time"
                    assert unit not in [one.unit for one in self.set_aside], "nobody tries it again"
                    self.leases[worker].append(unit)
                    self.attempts[unit].append(attempt)
                case RetryUnit():
                    self.retries.append(decision)
                case SetAside():
                    self.set_aside.append(decision)
                case Fail(error=error):
                    self.error = error
                case Finish():
                    self.is_finished = True

    @property
    def is_over(self) -> bool:
        return self.is_finished or self.error is not None

    @property
    def leased(self) -> list[int]:
        return [unit for units in self.leases.values() for unit in units]

    @property
    def workers(self) -> list[int]:
        return sorted([*self.loading, *self.leases])

    def _forget(self, worker: int) -> None:
        if worker in self.loading:
            self.loading.remove(worker)
        self.leases.pop(worker, None)

    def tell(self, event: Event) -> None:
        match event:
            case WorkerReady(worker=worker):
                self.loading.remove(worker)
                self.leases[worker] = []
            case UnitCommitted(worker=worker, unit=unit):
                self.leases[worker].remove(unit)
                self.commits[unit] += 1
            case UnitFailed(worker=worker, unit=unit):
                self.leases[worker].remove(unit)
            case WorkerDied(worker=worker):
                self._forget(worker)
        self.carry_out(self.controller.apply(event))

    def ready(self) -> None:
        for worker in list(self.loading):
            self.tell(WorkerReady(worker))


def pool_of(num_units: int, num_workers: int, **limits: int) -> SimulatedPool:
    units = range(100, 100 + num_units)
    return SimulatedPool(Controller(units, num_units, num_workers, CollectWorkers(**limits)))


@settings(max_examples=300)
@given(
    data=st.data(),
    num_units=st.integers(0, 12),
    num_workers=st.integers(1, 4),
    limits=st.builds(
        CollectWorkers,
        units_in_flight=st.integers(1, 3),
        max_attempts=st.integers(1, 3),
        max_worker_deaths=st.integers(0, 5),
        max_unit_deaths=st.integers(1, 3),
        max_set_aside=st.integers(0, 3),
        max_preemptions=st.integers(0, 4),
    ),
)
def test_any_interleaving_ends_with_each_unit_once_or_an_error(
    data: st.DataObject, num_units: int, num_workers: int, limits: CollectWorkers
) -> None:
    pool = SimulatedPool(Controller(range(num_units), num_units, num_workers, limits))
    capacity = num_workers
    for _ in range(600):
        if pool.is_over:
            break
        assert pool.workers, "somebody must be there to go on"
        assert all(len(units) <= limits.units_in_flight for units in pool.leases.values())
        assert len(pool.loading) <= max(0, capacity - len(pool.leases)) or not pool.loading
        worker = data.draw(st.sampled_from(pool.workers))
        # Mostly progress, so that long runs are reached; the rest is what can go wrong at this place.
        luck = data.draw(st.integers(0, 12))
        if luck == 0:
            pool.tell(WorkerDied(worker, "killed", is_preempted=data.draw(st.booleans())))
        elif luck == 2:
            capacity = data.draw(st.integers(1, 5))
            pool.carry_out(pool.controller.apply(CapacityChanged(capacity)))
        elif worker in pool.loading:
            pool.tell(WorkerFailed(worker, RuntimeError("load")) if luck == 1 else WorkerReady(worker))
        elif pool.leases[worker]:
            unit = pool.leases[worker][0]
            pool.tell(UnitFailed(worker, unit, RuntimeError("x")) if luck == 1 else UnitCommitted(worker, unit))
    assert pool.is_over
    given_up = [one.unit for one in pool.set_aside]
    assert pool.controller.set_aside == pool.set_aside
    if pool.is_finished:
        assert sorted([*pool.commits, *given_up]) == list(range(num_units)), "committed or set aside, never both"
        assert not pool.leased
        assert len(given_up) <= limits.max_set_aside
    else:
        assert isinstance(pool.error, JobError)
    assert all(count == 1 for count in pool.commits.values())
    assert all(attempts == list(range(len(attempts))) for attempts in pool.attempts.values())


def test_nothing_missing_starts_nobody() -> None:
    assert Controller([], 0, 4, CollectWorkers()).start() == [Finish()]


def test_no_more_workers_than_units() -> None:
    assert pool_of(2, 8).loading == [0, 1]


def test_every_worker_computes_before_any_has_a_unit_waiting() -> None:
    pool = pool_of(6, 2, units_in_flight=2)
    pool.tell(WorkerReady(0))
    assert pool.leases == {0: [100, 101]}
    pool.tell(WorkerReady(1))
    assert pool.leases == {0: [100, 101], 1: [102, 103]}


def test_the_last_units_do_not_wait_behind_a_slow_worker() -> None:
    pool = pool_of(3, 2, units_in_flight=2)
    pool.ready()
    assert pool.leases == {0: [100], 1: [101]}
    pool.tell(UnitCommitted(1, 101))
    assert pool.leases == {0: [100], 1: [102]}


def test_a_death_returns_the_leases_which_are_tried_again_at_once_and_alone() -> None:
    pool = pool_of(8, 2, units_in_flight=2)
    pool.ready()
    pool.tell(WorkerDied(0, "SIGKILL"))
    assert [retry.unit for retry in pool.retries] == [100, 101]
    assert "worker 0 died: SIGKILL" in pool.retries[0].cause
    assert pool.loading == [2]
    pool.tell(UnitCommitted(1, 102))
    assert pool.leases[1] == [103], "the suspect waits until it is alone"
    pool.tell(UnitCommitted(1, 103))
    assert pool.leases[1] == [100]
    pool.ready()
    assert pool.leases[2] == [101]
    pool.tell(UnitCommitted(2, 101))
    assert pool.leases == {1: [100], 2: [104, 105]}
    assert pool.attempts[100] == [0, 1]


def test_leases_of_a_node_that_went_away_are_under_no_suspicion() -> None:
    pool = pool_of(8, 2, units_in_flight=2)
    pool.ready()
    pool.tell(WorkerDied(0, "its node died", is_preempted=True))
    pool.tell(UnitCommitted(1, 102))
    assert pool.leases[1] == [103, 100], "what came back goes first"


def test_a_unit_that_raised_is_tried_by_another_worker() -> None:
    pool = pool_of(5, 2, units_in_flight=1)
    pool.ready()
    pool.tell(UnitFailed(0, 100, RuntimeError("bad luck")))
    assert pool.leases == {0: [102], 1: [101]}
    pool.tell(UnitCommitted(1, 101))
    assert pool.leases[1] == [100]


def test_a_lone_worker_tries_its_own_failure_again() -> None:
    pool = pool_of(2, 1, units_in_flight=1)
    pool.ready()
    pool.tell(UnitFailed(0, 100, RuntimeError("bad luck")))
    assert pool.leases == {0: [100]}


def test_a_unit_that_always_raises_is_set_aside_and_the_rest_goes_on() -> None:
    pool = pool_of(4, 1, units_in_flight=1, max_attempts=2)
    pool.ready()
    pool.tell(UnitFailed(0, 100, RuntimeError("shape")))
    pool.tell(UnitFailed(0, 100, RuntimeError("shape"), "Traceback: shape"))
    assert pool.set_aside == [SetAside(100, 2, 0, "RuntimeError: shape", "Traceback: shape")]
    for unit in (101, 102, 103):
        pool.tell(UnitCommitted(0, unit))
    assert pool.is_finished
    assert pool.attempts[100] == [0, 1]


def test_too_many_units_set_aside_fail_the_job_by_name() -> None:
    pool = pool_of(5, 1, units_in_flight=1, max_attempts=1, max_set_aside=1)
    pool.ready()
    for unit in (100, 101):
        pool.tell(UnitFailed(0, unit, RuntimeError("shape")))
    assert isinstance(pool.error, JobError)
    assert "unit 101 failed 1 times" in str(pool.error)
    assert "[100, 101]" in str(pool.error)
    assert "RuntimeError: shape" in str(pool.error)


def test_a_unit_that_kills_its_workers_is_set_aside_at_its_own_cost() -> None:
    pool = pool_of(9, 1, units_in_flight=2, max_unit_deaths=2, max_worker_deaths=2)
    pool.ready()
    pool.tell(UnitCommitted(0, 100))
    for poison in (101, 103, 105):
        for _ in range(2):
            while pool.loading:
                pool.ready()
            worker = pool.workers[0]
            while poison not in pool.leases[worker]:
                pool.tell(UnitCommitted(worker, pool.leases[worker][0]))
            pool.tell(WorkerDied(worker, "SIGSEGV"))
    assert [one.unit for one in pool.set_aside] == [101, 103, 105]
    assert pool.set_aside[0].deaths == 2
    assert "died: SIGSEGV" in pool.set_aside[0].cause
    pool.ready()
    while not pool.is_over:
        pool.tell(UnitCommitted(pool.workers[0], pool.leases[pool.workers[0]][0]))
    assert pool.is_finished
    assert len(pool.commits) == 6
    assert pool.controller.num_deaths == 6


def test_where_nothing_was_ever_committed_deaths_are_not_the_units_fault() -> None:
    pool = pool_of(9, 1, units_in_flight=1, max_unit_deaths=2, max_worker_deaths=3)
    while not pool.is_over:
        pool.ready()
        pool.tell(WorkerDied(pool.workers[0], "killed for its memory"))
    assert "4 workers died" in str(pool.error)
    assert "unit 100 during 2 of them" in str(pool.error)
    assert "unit 101 during 2 of them" in str(pool.error)


def test_nodes_that_go_away_cost_no_other_budget() -> None:
    pool = pool_of(2, 1, units_in_flight=1, max_worker_deaths=0, max_unit_deaths=1, max_preemptions=5)
    for _ in range(5):
        pool.ready()
        pool.tell(WorkerDied(pool.workers[0], "node died", is_preempted=True))
    assert not pool.is_over
    assert (pool.controller.num_preemptions, pool.controller.num_deaths) == (5, 0)
    pool.ready()
    pool.tell(WorkerDied(pool.workers[0], "node died", is_preempted=True))
    assert "6 workers were lost with their nodes" in str(pool.error)


def test_workers_are_started_when_nodes_join_as_far_as_there_is_work() -> None:
    pool = pool_of(5, 1, units_in_flight=1)
    pool.ready()
    pool.carry_out(pool.controller.apply(CapacityChanged(3)))
    assert pool.loading == [1, 2]
    pool.carry_out(pool.controller.apply(CapacityChanged(30)))
    assert pool.loading == [1, 2, 3, 4], "one for each unit that nobody has"


def test_workers_that_wait_for_room_are_withdrawn_when_nodes_leave() -> None:
    pool = pool_of(9, 3, units_in_flight=1)
    pool.tell(WorkerReady(0))
    pool.carry_out(pool.controller.apply(CapacityChanged(1)))
    assert pool.workers == [0]
    pool.tell(WorkerDied(0, "its node went", is_preempted=True))
    assert pool.workers == [3], "replaced, for something must be left that waits for nodes"
    pool.carry_out(pool.controller.apply(CapacityChanged(0)))
    assert pool.workers == [3]


def test_those_that_compute_are_never_withdrawn() -> None:
    pool = pool_of(9, 3, units_in_flight=1)
    pool.ready()
    pool.carry_out(pool.controller.apply(CapacityChanged(1)))
    assert pool.workers == [0, 1, 2]
    pool.tell(WorkerDied(1, "killed"))
    assert pool.workers == [0, 2], "no longer replaced"


def test_deaths_do_not_use_up_the_attempts_of_a_unit() -> None:
    pool = pool_of(1, 1, max_attempts=1, max_worker_deaths=3, max_unit_deaths=4)
    for _ in range(3):
        pool.ready()
        pool.tell(WorkerDied(pool.workers[0], "preempted"))
    pool.ready()
    pool.tell(UnitCommitted(pool.workers[0], 100))
    assert pool.is_finished
    assert pool.controller.num_deaths == 3


def test_too_many_deaths_name_the_unit_that_was_computed() -> None:
    pool = pool_of(4, 1, units_in_flight=2, max_worker_deaths=1)
    for _ in range(2):
        pool.ready()
        pool.tell(WorkerDied(pool.workers[0], "killed for its memory"))
    assert isinstance(pool.error, JobError)
    assert "unit 100 during 2 of them" in str(pool.error)
    assert "unit 101 during 1 of them" in str(pool.error)


@pytest.mark.parametrize("stage", ["load", "unit"])
def test_what_the_user_must_mend_fails_at_once_with_that_very_error(stage: str) -> None:
    pool = pool_of(4, 2)
    full = ResourceError("disk full at /data")
    if stage == "load":
        pool.tell(WorkerFailed(0, full))
    else:
        pool.ready()
        pool.tell(UnitFailed(0, 100, full))
    assert pool.error is full


def test_a_service_that_does_not_answer_is_tried_again() -> None:
    pool = pool_of(2, 1, units_in_flight=1)
    pool.ready()
    pool.tell(UnitFailed(0, 100, UnreachableError("s3://bucket: timed out")))
    assert pool.leases == {0: [100]}


def test_a_failed_load_is_tried_anew_and_then_fails() -> None:
    pool = pool_of(4, 1, max_attempts=2)
    pool.tell(WorkerFailed(0, OSError("timeout")))
    assert pool.loading == [1]
    pool.tell(WorkerFailed(1, OSError("timeout")))
    assert "could not be made ready 2 times" in str(pool.error)


def test_events_of_workers_that_are_gone_change_nothing() -> None:
    pool = pool_of(4, 1)
    pool.ready()
    pool.tell(WorkerDied(0, "killed"))
    assert pool.controller.apply(UnitCommitted(0, 100)) == []
    assert pool.controller.num_committed == 0


def test_units_are_taken_lazily() -> None:
    controller = Controller(itertools.count(), 10**12, 2, CollectWorkers(units_in_flight=2))
    controller.start()
    assert controller.apply(WorkerReady(0)) == [LeaseUnit(0, 0, 0), LeaseUnit(0, 1, 0)]
