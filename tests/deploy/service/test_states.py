"""The runner over a real database and a cluster with every fault, under a clock that the test turns."""

from __future__ import annotations

from typing import Any

from fake_cluster import FakeCluster, Killed
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deploy.service.database import open_database
from deploy.service.jobs import Filter, Jobs
from deploy.service.runner import Runner
from deploy.service.states import Delivery, Progress, State
from schemas.errors import UnreachableError
from schemas.pipeline import JOB_ADAPTER

PLACES = [f"{when} {call}" for when in ("before", "after") for call in ("session", "known", "submit", "stop")]


def job_of(name: str) -> Any:
    return JOB_ADAPTER.validate_python(
        {
            "kind": "train", "name": name, "store": "/s", "output": f"/o/{name}",
            "dictionaries": [{"name": "d", "sources": ["h"], "num_latents": 64}],
        }
    )  # fmt: skip


class Service(RuleBasedStateMachine):
    """Jobs are accepted, stopped and retried while answers are lost, the service is killed and the cluster dies."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.engine = open_database("sqlite://")
        self.cluster = FakeCluster()
        self.accepted: set[str] = set()
        self.ended: dict[str, Progress] = {}
        self.replaced = False
        self.asked: set[str] = set()
        self.begin()

    def teardown(self) -> None:
        self.engine.dispose()

    def begin(self) -> None:
        """The service starts, with nothing but its database."""
        self.jobs = Jobs(self.engine, lambda: self.now)
        self.runner = Runner("c", self.cluster, self.jobs, lambda: self.now)

    @initialize()
    def quiet(self) -> None:
        self.cluster.fault = lambda place: None

    @rule(name=st.sampled_from("abc"))
    def submit(self, name: str) -> None:
        before = {job.id for job in self.jobs.page(Filter(), limit=100, offset=0)[0] if alive(job)}
        job, is_new = self.jobs.accept(job_of(name), cluster="c", owner="me", team="t")
        assert is_new == (job.id not in before)
        assert not job.progress.state.has_ended
        self.accepted.add(job.id)

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        identifier = data.draw(st.sampled_from(sorted(self.accepted)))
        before = self.jobs.get(identifier).progress
        after = self.jobs.stop(identifier).progress
        self.asked.add(identifier)
        assert after.stop_asked or before.state.has_ended
        if before.delivery is Delivery.NONE and not before.state.has_ended:
            assert after.state is State.STOPPED

    @rule()
    def round(self) -> None:
        self.runner.step()

    @rule(place=st.sampled_from(PLACES), kills=st.booleans(), nth=st.integers(1, 3))
    def round_with_a_fault(self, place: str, kills: bool, nth: int) -> None:
        met = 0

        def fault(here: str) -> None:
            nonlocal met
            met += here == place
            if met == nth:
                raise Killed if kills else UnreachableError("the answer was lost")

        self.cluster.fault = fault
        try:
            self.runner.step()
        except Killed:
            self.begin()
        finally:
            self.cluster.fault = lambda place: None

    @rule(seconds=st.floats(0.5, 120))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(up=st.booleans())
    def network(self, up: bool) -> None:
        self.cluster.is_up = up

    @rule(refuses=st.booleans())
    def room(self, refuses: bool) -> None:
        self.cluster.refuses = refuses

    @precondition(lambda self: self.cluster.jobs)
    @rule(data=st.data(), status=st.sampled_from(("RUNNING", "SUCCEEDED", "FAILED")))
    def cluster_works(self, data: st.DataObject, status: str) -> None:
        identifier = data.draw(st.sampled_from(sorted(self.cluster.jobs)))
        if not self.cluster.jobs[identifier].has_ended:
            self.cluster.to(identifier, status)

    @rule()
    def cluster_is_replaced(self) -> None:
        self.replaced = True
        self.cluster.replace()

    @invariant()
    def nothing_runs_twice(self) -> None:
        assert all(count == 1 for count in self.cluster.started.values())
        assert set(self.cluster.started) <= self.accepted

    @invariant()
    def one_attempt_of_a_job_lives(self) -> None:
        living = [job.fingerprint for job in self.jobs.alive("c")]
        assert len(living) == len(set(living))

    @invariant()
    def ends_are_final_and_true(self) -> None:
        for identifier in self.accepted:
            job = self.jobs.get(identifier)  # what was accepted is never forgotten
            progress = job.progress
            if identifier in self.ended:
                assert progress == self.ended[identifier]
            elif progress.state.has_ended:
                self.ended[identifier] = progress
                assert progress.ended_s is not None or progress.state in self.told_by_cluster(identifier)
                if progress.state is State.LOST:
                    assert self.replaced
                if progress.state is State.STOPPED:
                    assert identifier in self.asked
                if progress.state is State.SUCCEEDED:
                    assert self.cluster.started[identifier] == 1
            elif progress.delivery is Delivery.NONE:
                assert identifier not in self.cluster.started

    def told_by_cluster(self, identifier: str) -> set[str]:
        found = self.cluster.jobs.get(identifier)
        return {found.status} if found else set()

    @rule()
    def in_the_end_all_have_run(self) -> None:
        """Let everything work for a while: every job that nobody stopped has then run once, or is said to be lost."""
        self.cluster.is_up, self.cluster.refuses = True, False
        for _ in range(3):
            self.now += 100
            while self.runner.step():
                pass
            for identifier, job in self.cluster.jobs.items():
                if not job.has_ended:
                    self.cluster.to(identifier, "SUCCEEDED")
        assert not self.jobs.alive("c")
        for identifier in self.accepted:
            state = self.jobs.get(identifier).progress.state
            if state is State.SUCCEEDED:
                assert self.cluster.started[identifier] == 1
            elif identifier not in self.asked and state is not State.LOST:
                assert state is State.FAILED


def alive(job: Any) -> bool:
    return not job.progress.state.has_ended


Service.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestService = Service.TestCase
