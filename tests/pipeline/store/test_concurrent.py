"""Jobs that add hook points and rows to one store at the same time: whatever the interleaving, nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interleaving import Killed, Turns

from pipeline.collection.passes import plan_passes
from pipeline.store.disk import DiskBackend
from pipeline.store.log import StoreLog, completion, opened_passes
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.writer import StoreWriter
from schemas.errors import IncompleteError, MismatchError
from schemas.store import PassRecord

WIDTHS = {"a": 2, "b": 3, "c": 1, "d": 2}
SHARD_ROWS, MOST_ROWS = 8, 28


class Job:
    """What a collect job does to a store, with activations that are there already in place of a model's."""

    def __init__(self, whole: Any, url: str, hooks: Sequence[str], num_rows: int, batch_tokens: int = 16) -> None:
        self.whole, self.url, self.hooks, self.num_rows = whole, url, tuple(hooks), num_rows
        self.batch_tokens = batch_tokens

    def __call__(self) -> None:
        plan = self._plan()
        while True:
            try:
                writers = [self._writer(one, plan.num_rows) for one in plan.begun]
                if plan.missing:
                    widths = {hook: WIDTHS[hook] for hook in plan.missing}
                    new = PassRecord(hook_points=widths, batch_tokens=self.batch_tokens)
                    writers.append(self._writer(new, plan.num_rows))
                for writer in writers:
                    self._write(writer)
                for writer in writers:
                    writer.finish()
                return
            except (IncompleteError, MismatchError):
                again = self._plan()
                if again == plan:
                    raise
                plan = again

    def _plan(self) -> Any:
        return plan_passes(StoreLog(Objects(self.url)).read(), self.hooks, self.num_rows)

    def _writer(self, one: PassRecord, num_rows: int) -> StoreWriter:
        return StoreWriter.open(self.url, self.whole.record, one, num_rows=num_rows)

    def _write(self, writer: StoreWriter) -> None:
        committed = {*writer.committed_units()}
        for unit in range(writer.num_units):
            if unit not in committed:
                start, stop = writer.unit_rows(unit)
                arrays = {hook: self.whole.arrays[hook][start:stop] for hook in writer.pass_record.hook_points}
                tokens = self.whole.tokens.slice(start, stop)
                writer.write_unit(unit, arrays, tokens, worker="w", attempt=0, seconds={})


@pytest.fixture
def whole(sample: Callable[..., Any]) -> Any:
    """All rows of all hook points that any job could want."""
    return sample(num_rows=MOST_ROWS, widths=WIDTHS, chunk_rows=4, shard_rows=SHARD_ROWS)


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about power cuts, and there are thousands of writes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def require_whole(url: str, whole: Any, hooks: set[str], num_rows: int) -> None:
    """The store shows exactly this, every byte of it is right, and its log, ledger, shapes and manifest agree."""
    store = Store.open(url)
    assert set(store.hook_points) == hooks
    assert store.num_rows == num_rows
    assert store.tokens() == whole.tokens.slice(0, num_rows)
    for hook in hooks:
        np.testing.assert_array_equal(store.read_rows(hook, 0, num_rows), whole.arrays[hook][:num_rows])
        assert store.statistics[hook].count == num_rows
    assert store.verify(deep=True) == []
    events = StoreLog(store.objects).read()
    shown = completion(events)
    assert shown is not None
    assert [*shown.passes] == store.manifest.passes  # type: ignore[union-attr]
    owners = [hook for one in opened_passes(events).values() for hook in one.hook_points]
    assert len(owners) == len({*owners}), "a hook point has two owners"
    group = zarr.open_group(url, mode="r")
    for hook in hooks:
        assert group[f"activations/{hook}"].shape[0] == num_rows  # type: ignore[union-attr]


jobs_to_run = st.lists(
    st.tuples(
        st.lists(st.sampled_from(sorted(WIDTHS)), min_size=1, max_size=3, unique=True),
        st.sampled_from([8, 16, 24]),
        st.sampled_from([16, 32]),
    ),
    min_size=2,
    max_size=3,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs_to_run, st.integers(0, 2**32), st.lists(st.integers(0, 120), max_size=2))
def test_any_jobs_in_any_interleaving_end_in_one_whole_store(
    tmp_path_factory: pytest.TempPathFactory, whole: Any, quick_disk: None,
    wanted: list[tuple[list[str], int, int]], seed: int, kills: list[int],
) -> None:  # fmt: skip
    """Whatever overlaps, however the calls fall, and whoever is killed: a job ends well or is told why not, and rerun
    without company each ends well."""
    url = str(tmp_path_factory.mktemp("race") / "store")
    jobs = {f"job-{at}": Job(whole, url, hooks, rows, batch) for at, (hooks, rows, batch) in enumerate(wanted)}
    with pytest.MonkeyPatch.context() as patch:
        turns = Turns(seed, {f"job-{at}": left for at, left in enumerate(kills)})
        turns.watch(patch)
        outcomes = turns.run(jobs)
    for name, error in outcomes.items():
        if isinstance(error, MismatchError):
            # Fewer rows than another job had given the store before this one had begun.
            assert "max_tokens=" in str(error)
            jobs[name].num_rows = 24
        else:
            assert error is None or isinstance(error, Killed), f"{name}: {error!r}"
    done = [jobs[name] for name, error in outcomes.items() if error is None]
    if done:
        shown = Store.open(url)
        assert {hook for job in done for hook in job.hooks} <= {*shown.hook_points}
        assert shown.num_rows >= max(job.num_rows for job in done)
    for job in jobs.values():
        try:
            job()
        except MismatchError:
            job.num_rows = 24
            job()
    everything = {hook for job in jobs.values() for hook in job.hooks}
    require_whole(url, whole, everything, max(job.num_rows for job in jobs.values()))


def both(turns: Turns, first: Job, second: Job) -> None:
    with pytest.MonkeyPatch.context() as patch:
        turns.watch(patch)
        outcomes = turns.run({"first": first, "second": second})
    assert outcomes == {"first": None, "second": None}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.usefixtures("quick_disk")
class TestTwoJobs:
    """On a store that shows hook point a over 16 rows."""

    @pytest.fixture
    def url(self, whole: Any, local_url: str) -> str:
        Job(whole, local_url, ["a"], 16)()
        return local_url

    def test_different_hook_points(self, whole: Any, url: str, seed: int) -> None:
        before = {path: path.read_bytes() for path in Path(url).rglob("*") if path.is_file() and "/c/" in str(path)}
        both(Turns(seed), Job(whole, url, ["b"], 16), Job(whole, url, ["c", "d"], 16))
        require_whole(url, whole, {"a", "b", "c", "d"}, 16)
        assert {path: path.read_bytes() for path in before} == before

    def test_the_same_hook_points(self, whole: Any, url: str, seed: int) -> None:
        both(Turns(seed), Job(whole, url, ["b", "c"], 16), Job(whole, url, ["b", "c"], 16))
        require_whole(url, whole, {"a", "b", "c"}, 16)

    def test_overlapping_hook_points_crosswise(self, whole: Any, url: str, seed: int) -> None:
        """Each has claimed what the other wants next: one of them comes second and takes over the other's pass."""
        both(Turns(seed), Job(whole, url, ["b", "c"], 16), Job(whole, url, ["c", "b", "d"], 16))
        require_whole(url, whole, {"a", "b", "c", "d"}, 16)

    def test_more_rows_and_new_hook_points(self, whole: Any, url: str, seed: int) -> None:
        """New ones over the rows that were there when that job began; both end with all rows of everything, or the
        second to begin is told how many rows there are."""
        turns = Turns(seed)
        with pytest.MonkeyPatch.context() as patch:
            turns.watch(patch)
            outcomes = turns.run({"grow": Job(whole, url, ["a"], 24), "add": Job(whole, url, ["b"], 16)})
        assert outcomes["grow"] is None
        if outcomes["add"] is None:
            require_whole(url, whole, {"a", "b"}, 24)
        else:
            assert "max_tokens=24" in str(outcomes["add"])
            require_whole(url, whole, {"a"}, 24)

    def test_two_numbers_of_more_rows(self, whole: Any, url: str, seed: int) -> None:
        both(Turns(seed), Job(whole, url, ["a"], 24), Job(whole, url, ["a", "b"], 24))
        require_whole(url, whole, {"a", "b"}, 24)

    def test_a_last_unit_that_is_short(self, whole: Any, url: str, seed: int) -> None:
        both(Turns(seed), Job(whole, url, ["a"], MOST_ROWS), Job(whole, url, ["b", "a"], MOST_ROWS))
        require_whole(url, whole, {"a", "b"}, MOST_ROWS)


@pytest.mark.parametrize(
    ("hook", "num_rows", "key"),
    [("b", 8, "manifest.json"), ("a", 16, "manifest.json"), ("a", 16, "activations/a/zarr.json")],
)
def test_a_job_that_is_slow_to_write_does_not_bring_back_what_was_before(
    whole: Any, local_url: str, monkeypatch: pytest.MonkeyPatch, hook: str, num_rows: int, key: str
) -> None:
    """Between its decision and its writing (of the manifest, of a shape) another job adds a hook point and rows."""
    Job(whole, local_url, ["a"], 8)()
    write, waiting = DiskBackend.write, [Job(whole, local_url, ["a", "c"], 24)]

    def interrupted(backend: DiskBackend, at: str, data: bytes | bytearray) -> None:
        if at == key and waiting:
            waiting.pop()()
            assert Store.open(local_url).num_rows == 24
        write(backend, at, data)

    monkeypatch.setattr(DiskBackend, "write", interrupted)
    Job(whole, local_url, [hook], num_rows)()
    assert not waiting
    require_whole(local_url, whole, {"a", hook, "c"}, 24)
