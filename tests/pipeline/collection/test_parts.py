"""Stages as threads of one process write the store of one process; a failure on either side lets the other go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_job import built_table, digests, small_spec
from torch import Tensor

from pipeline.collection.outbox import Key, Outbox
from pipeline.collection.parts import PartCollector
from pipeline.collection.prepare import Pending, prepare
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.models.stages import StageForward
from pipeline.models.stages_load import load_stage
from pipeline.store.reader import Store
from schemas.collect import CollectSpec
from schemas.errors import MismatchError

HOOKS = ["blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_in", "blocks.1.hook_resid_post"]


def wait_for(condition: Callable[[], bool]) -> None:
    """At most ten seconds."""
    done = threading.Event()
    for _ in range(1000):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("did not happen")


def test_an_outbox_holds_as_many_states_as_it_has_room() -> None:
    box: Outbox[int] = Outbox(room=2)
    put: list[int] = []

    def put_all() -> None:
        for index in range(5):
            box.put((0, 0), index, index)
            put.append(index)

    thread = threading.Thread(target=put_all)
    thread.start()
    wait_for(lambda: put == [0, 1])
    assert [box.fetch((0, 0), index) for index in range(5)] == list(range(5))
    thread.join()


@pytest.mark.parametrize("is_putting", [True, False])
def test_a_failed_unit_lets_the_other_side_go(is_putting: bool) -> None:
    box: Outbox[int] = Outbox(room=1)
    box.put((0, 0), 0, 7)
    with ThreadPoolExecutor() as pool:
        waiting: Future[Any]
        waiting = pool.submit(box.put, (1, 0), 0, 8) if is_putting else pool.submit(box.fetch, (1, 0), 0)
        box.fail((1, 0), OSError("full"))
        with pytest.raises(OSError, match="full"):
            waiting.result(timeout=10)
    assert box.fetch((0, 0), 0) == 7, "other units go on"
    with pytest.raises(OSError, match="full"):
        box.fetch((1, 0), 3)


def test_a_unit_that_is_given_up_makes_room() -> None:
    box: Outbox[int] = Outbox(room=1)
    box.put((0, 0), 0, 7)
    box.fail((0, 0), OSError("full"))
    box.put((1, 0), 0, 8)
    assert box.fetch((1, 0), 0) == 8


@dataclass
class Joint:
    key: Key
    before: Outbox[Tensor] | None
    after: Outbox[Tensor]
    received: int = 0
    handed: int = 0

    def receive(self) -> Tensor:
        assert self.before is not None
        self.received += 1
        return self.before.fetch(self.key, self.received - 1)

    def hand_on(self, hidden_BLD: Tensor) -> None:
        self.after.put(self.key, self.handed, hidden_BLD.clone())
        self.handed += 1


@dataclass(frozen=True)
class Linked:
    forward: StageForward
    joint: Joint

    def run(self, token_ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        return self.forward.run(token_ids, lengths, self.joint)


def collectors(one: Pending, num_stages: int) -> list[PartCollector]:
    spec = one.of.spec
    forwards: list[StageForward] = []
    for index in range(num_stages):
        stage = load_stage(spec.model, one.of.hook_points, index, num_stages)
        forwards.append(StageForward(stage, forwards[-1].probed if forwards else None))
    boxes: list[Outbox[Tensor]] = [Outbox() for _ in range(num_stages)]
    made = []
    for index, forward in enumerate(forwards):
        forward.settle(forwards[-1].probed)
        before = boxes[index - 1] if index else None

        def network(
            unit: int, attempt: int, _: Any, forward: Any = forward, before: Any = before, i: int = index
        ) -> Any:
            return Linked(forward, Joint((unit, attempt), before, boxes[i]))

        widths = forwards[-1].probed.widths
        device = forward._stage.loaded.device
        made.append(PartCollector.open(one.of, widths, list(forward.widths), network, device, worker=f"stage-{index}"))
    return made


@pytest.fixture
def spec(model: Path, corpus: Path, tmp_path: Path) -> CollectSpec:
    return small_spec(model, corpus, tmp_path / "one", hook_points=HOOKS)


def test_stages_write_the_store_of_one_process(spec: CollectSpec, tmp_path: Path) -> None:
    (one,) = prepare(spec, built_table(spec))
    whole = UnitCollector.open(one.of)
    assert [entry.unit for entry in collect_units(whole, one.units)] == list(one.units)
    whole.writer.finish()

    staged = spec.model_copy(update={"output": str(tmp_path / "two")})
    (one,) = prepare(staged, built_table(spec))
    first, last = collectors(one, 2)
    parts: dict[Key, Future[Any]] = {}
    for unit in one.units:
        parts[unit, 0] = Future()

    def feed() -> None:
        for unit in one.units:
            done = partial(lambda key, part: parts[key].set_result(part.result()), (unit, 0))
            ahead.submit(unit).add_done_callback(done)

    with (
        first.following() as ahead,
        last.leading(lambda unit, attempt: [parts[unit, attempt].result()]) as behind,
        ThreadPoolExecutor(1) as feeder,
    ):
        fed = feeder.submit(feed)
        entries = [each.result(timeout=60).entry for each in [behind.submit(unit) for unit in one.units]]
        fed.result(timeout=60)
    assert [entry.unit for entry in entries] == list(one.units)
    assert {entry.worker for entry in entries} == {"stage-1"}
    last.whole.finish()
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert Store.open(staged.output).verify(deep=True) == []


def test_hook_points_go_on_with_as_many_processes_as_matrix_products_were_split_over(
    spec: CollectSpec, model: Path, corpus: Path
) -> None:
    table = built_table(spec)
    workers = {"placement": "tensor", "processes_per_replica": 2}
    split = small_spec(model, corpus, Path(spec.output), hook_points=HOOKS, workers=workers)
    (one,) = prepare(split, table)
    whole = UnitCollector.open(one.of)
    whole.collect(0)
    (begun,) = prepare(spec, table)
    assert begun.of.tensor_parallel == 2, "of placement auto"
    assert 0 not in begun.units
    assert whole.writer.pass_record.tensor_parallel == 2
    for placement in ({"placement": "replica"}, {"placement": "tensor", "processes_per_replica": 4}):
        other = small_spec(model, corpus, Path(spec.output), hook_points=HOOKS, workers=placement)
        with pytest.raises(MismatchError, match=r"tensor_parallel: 2.*Choose placement tensor and processes_per_rep"):
            prepare(other, table)
