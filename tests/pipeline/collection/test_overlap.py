"""Units that overlap: the same bytes, bounded memory, errors that come out, threads that end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_job import HOOKS, built_table, digests, small_spec

from pipeline.collection import overlap
from pipeline.collection.overlap import UNITS_HELD
from pipeline.collection.prepare import prepare
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.collection.unit_run import Collected
from pipeline.store.objects import Objects
from schemas.errors import JobError, ResourceError


class GatedObjects(Objects):
    """Real storage that lets nobody create an object of these units before the gate opens, or refuses to."""

    def __init__(self, url: str, unit: int, gate: threading.Event | None) -> None:
        super().__init__(url)
        self._unit, self._gate = unit, gate
        self.created: list[str] = []

    def create(self, key: str, data: Any) -> bool:
        if f"/{self._unit}/0" in key or key.endswith(f"{self._unit:08d}.json"):
            if self._gate is None:
                raise ResourceError(f"the disk is full: {key}")
            assert self._gate.wait(60)
        self.created.append(key)
        return super().create(key, data)


@pytest.fixture
def open_collector(model: Path, corpus: Path, tmp_path: Path) -> Callable[..., tuple[UnitCollector, list[int]]]:
    def open_it(name: str, **changes: Any) -> tuple[UnitCollector, list[int]]:
        spec = small_spec(model, corpus, tmp_path / name / "store", **changes)
        (one,) = prepare(spec, built_table(spec))
        return UnitCollector.open(one.of), list(one.units)

    return open_it


def gated(collector: UnitCollector, unit: int, gate: threading.Event | None) -> UnitCollector:
    objects = GatedObjects(collector.writer.objects.url, unit, gate)
    return replace(collector, writer=replace(collector.writer, objects=objects))


def stage_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("headworks_")]


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work)
    thread.start()
    yield thread
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"storage": {"layout": "arrow"}},
        {"storage": {"dtype": "int8", "lossy": True}, "statistics": {"covariance": True, "outlier_tokens": 3}},
        {"storage": {"codec": "bf16"}},
    ],
)
def test_units_that_overlap_have_the_bytes_of_units_one_by_one(
    open_collector: Callable[..., tuple[UnitCollector, list[int]]], changes: dict[str, Any]
) -> None:
    one_by_one, units = open_collector("serial", **changes)
    alone = [one_by_one.collect(unit) for unit in units]
    overlapped, _ = open_collector("overlapped", **changes)
    entries = list(collect_units(overlapped, units))
    assert [entry.unit for entry in entries] == units
    for one, other in zip(alone, entries, strict=True):
        assert (one.objects, one.statistics, one.num_rows) == (other.objects, other.statistics, other.num_rows)
    one_by_one.writer.finish()
    overlapped.writer.finish()
    url, other = one_by_one.writer.objects.url, overlapped.writer.objects.url
    assert digests(url) == digests(other)
    assert not stage_threads()


def test_threads_that_share_the_encoding_give_the_same_entry(
    open_collector: Callable[..., tuple[UnitCollector, list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, units = open_collector("serial", statistics={"covariance": True})
    expected = [alone.collect(unit) for unit in units]
    spread, _ = open_collector("spread", statistics={"covariance": True})
    monkeypatch.setattr(overlap, "encoding_threads", lambda device, num_threads: 3)
    found = list(collect_units(spread, units))
    assert [(one.objects, one.statistics) for one in found] == [(one.objects, one.statistics) for one in expected]


def test_a_storage_that_hangs_holds_the_forward_up_and_loses_nothing(
    open_collector: Callable[..., tuple[UnitCollector, list[int]]],
) -> None:
    collector, units = open_collector("store")
    gate = threading.Event()
    collector = gated(collector, 0, gate)
    assert len(units) > 8
    entries: list[int] = []
    submitted: list[Future[Collected]] = []
    with collector.overlapped() as stages:

        def submit_all() -> None:
            submitted.extend(stages.submit(unit) for unit in units)

        with in_background(submit_all) as submitting:
            submitting.join(1)
            # Two have room for their rows, one waits for room, four are at most read: two queues of one and their ends.
            assert submitting.is_alive()
            runs = [job.run for job in stages._jobs]
            assert len([run for run in runs if run.kept]) == UNITS_HELD
            assert len(runs) <= UNITS_HELD + 5
            assert not [future for future in submitted if future.done()]
            gate.set()
        entries = [future.result(60).entry.unit for future in submitted]
    assert entries == units
    collector.writer.finish()


def test_an_error_of_writing_comes_out_and_other_units_go_on(
    open_collector: Callable[..., tuple[UnitCollector, list[int]]],
) -> None:
    collector, units = open_collector("store")
    collector = gated(collector, 1, None)
    with collector.overlapped() as stages:
        futures = [stages.submit(unit) for unit in units[:4]]
        with pytest.raises(ResourceError, match=r"the disk is full.*/1/0") as caught:
            futures[1].result(60)
        assert type(caught.value) is ResourceError
        assert [futures[unit].result(60).entry.unit for unit in (0, 2, 3)] == [0, 2, 3]
        # The same collector may try the unit again, once there is room.
        assert collector.writer.ledger.units() == [0, 2, 3]
        assert isinstance(stages.submit(1).exception(60), ResourceError)
    healthy, _ = open_collector("store")
    assert healthy.collect(1).unit == 1


@pytest.mark.parametrize("stage", ["read", "forward", "keep", "encode", "write", "commit"])
def test_an_error_in_any_stage_fails_its_unit_and_commits_nothing_of_it(
    open_collector: Callable[..., tuple[UnitCollector, list[int]]], stage: str
) -> None:
    collector, units = open_collector("store")

    class Broken(type(collector.begin(0))):  # type: ignore[misc]
        pass

    def fail(*_: object, **__: object) -> None:
        raise ArithmeticError(f"{stage} of unit 2")

    setattr(Broken, stage, fail)

    class BreaksAtTwo(UnitCollector):
        def begin(self, unit: int, attempt: int = 0) -> Any:
            run = super().begin(unit, attempt)
            run.__class__ = Broken if unit == 2 else run.__class__
            return run

    broken = BreaksAtTwo(collector.forward, collector.table, collector.writer, collector.worker)
    entries = collect_units(broken, units)
    assert [next(entries).unit for _ in range(2)] == [0, 1]  # type: ignore[call-overload]
    with pytest.raises(ArithmeticError, match=f"{stage} of unit 2"):
        next(entries)  # type: ignore[call-overload]
    assert 2 not in collector.writer.ledger.units()
    assert not stage_threads()


def test_a_caller_that_stops_early_leaves_no_thread_and_no_half_unit(
    open_collector: Callable[..., tuple[UnitCollector, list[int]]],
) -> None:
    collector, units = open_collector("store")
    entries = collect_units(collector, units)
    assert next(entries).unit == 0  # type: ignore[call-overload]
    entries.close()  # type: ignore[attr-defined]
    assert not stage_threads()
    committed = collector.writer.ledger.units()
    assert committed == units[: len(committed)]
    assert len(committed) < len(units)
    for _ in collect_units(collector, units[len(committed) :]):
        pass
    collector.writer.finish()
    undisturbed, _ = open_collector("undisturbed")
    list(collect_units(undisturbed, units))
    undisturbed.writer.finish()
    assert digests(collector.writer.objects.url) == digests(undisturbed.writer.objects.url)


def test_closing_gives_up_what_is_under_way_and_tells_who_waits(
    open_collector: Callable[..., tuple[UnitCollector, list[int]]],
) -> None:
    collector, units = open_collector("store")
    gate = threading.Event()
    stages = gated(collector, 0, gate).overlapped()
    futures: list[Future[Collected]] = []

    def submit_all() -> None:
        with suppress(AssertionError):  # the one after the close
            for unit in units:
                futures.append(stages.submit(unit))

    with in_background(submit_all):
        while not futures:
            time.sleep(0.01)
        with in_background(stages.close):
            time.sleep(0.2)
            gate.set()
    assert not stage_threads()
    errors = [future.exception(5) for future in futures]
    assert any(isinstance(error, JobError) and "given up" in str(error) for error in errors)
    stages.close()


def test_ctrl_c_ends_the_threads_and_commits_nothing_more(
    open_collector: Callable[..., tuple[UnitCollector, list[int]]],
) -> None:
    collector, units = open_collector("store")
    gate = threading.Event()

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        gate.set()

    timer = threading.Timer(0.5, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(collect_units(gated(collector, 0, gate), units))
    timer.join()
    assert not stage_threads()
    # Not even the unit of which an object was being written.
    assert collector.writer.ledger.units() == []


def test_a_unit_that_another_attempt_has_committed_keeps_its_entry(
    open_collector: Callable[..., tuple[UnitCollector, list[int]]],
) -> None:
    collector, _ = open_collector("store")
    first = replace(collector, worker="first").collect(3)
    with replace(collector, worker="second").overlapped() as stages:
        again = stages.submit(3, attempt=1).result(60)
    assert again.entry == first
    assert "forward" in again.seconds


def test_the_seconds_of_every_stage_and_its_stalls_are_told(
    open_collector: Callable[..., tuple[UnitCollector, list[int]]],
) -> None:
    collector, units = open_collector("store")
    with collector.overlapped() as stages:
        done = [stages.submit(unit) for unit in units[:3]]
        told = [future.result(60) for future in done]
    names = {"read", "forward", "copy", "encode", "write", "commit"}
    names |= {f"stall_{stage}" for stage in ("forward", "copy", "encode", "write")}
    for one in told:
        assert set(one.seconds) == names
        assert all(seconds >= 0 for seconds in one.seconds.values())
        assert set(one.entry.seconds) == names - {"commit"}
    assert sorted(collector.writer.pass_record.hook_points) == sorted(HOOKS)
