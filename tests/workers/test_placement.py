"""Replicas of several processes on Ray: the store is the one that a single process writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import faults
import numpy as np
import psutil  # type: ignore[import-untyped,unused-ignore]
import pytest
import ray
import torch
from small_job import built_table, digests, small_spec

from pipeline.collection.prepare import prepare
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.models.tensor import BOUND
from pipeline.models.utilisation import flop_per_token
from pipeline.store.reader import Store
from schemas.collect import CollectSpec, CollectWorkers
from schemas.errors import MismatchError, ModelError, SpecError
from workers import replica_stages
from workers.collect import run_collect
from workers.events import EventLog
from workers.progress import Progress

ray.cloudpickle.register_pickle_by_value(faults)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

HOOKS = ["blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_in", "blocks.1.hook_resid_post"]


@pytest.fixture(scope="module")
def make_spec(model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CollectSpec]:
    """Specs of one token table, which the first job makes and all others use."""
    table = tmp_path_factory.mktemp("table") / "tokens"
    return partial(small_spec, model, corpus, hook_points=HOOKS, tokens={"output": str(table)})


@pytest.fixture(scope="module")
def undisturbed(make_spec: Callable[..., CollectSpec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store as one process writes it, without Ray."""
    spec = make_spec(tmp_path_factory.mktemp("undisturbed") / "store")
    (one,) = prepare(spec, built_table(spec))
    collector = UnitCollector.open(one.of)
    for _ in collect_units(collector, one.units):
        pass
    collector.writer.finish()
    return Path(spec.output)


def workers_of(store: Path) -> set[str]:
    """Who committed, without host and process."""
    entries = [json.loads(path.read_bytes()) for path in (store / "ledger").rglob("*.json")]
    return {entry["worker"].partition("@")[0] for entry in entries}


def require_same(store: Path, undisturbed: Path) -> None:
    """Every object byte for byte, but for what a killed process was about to write."""
    assert {key: text for key, text in digests(store).items() if not key.endswith(".partial")} == digests(undisturbed)
    assert Store.open(str(store)).verify(deep=True) == []


def progress_into(folder: Path) -> Progress:
    """Events go to a file there."""
    progress = Progress()
    progress.events = EventLog(str(folder), "events.jsonl", job="test")
    return progress


def require_operations_of(collector: UnitCollector, progress: Progress, folder: Path) -> None:
    """The processes of a replica say together what one process that has all of the model says."""
    assert progress.events is not None
    progress.events.flush()
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    told = [line for line in lines if line["event"] == "worker.ready"]
    expected = flop_per_token(collector.forward.network, context_length=24)
    assert told
    assert [line["flop_per_token"] for line in told] == pytest.approx([expected] * len(told))
    assert all(line["peak_flop_per_s"] > 0 for line in told)


def placed(placement: str, **more: Any) -> dict[str, Any]:
    return {"num_workers": 2, "cpus_per_worker": 0.5, "placement": placement, "processes_per_replica": 2, **more}


@pytest.mark.slow
def test_stages_write_the_bytes_of_one_process(
    make_spec: Callable[..., CollectSpec], tmp_path: Path, undisturbed: Path
) -> None:
    spec = make_spec(tmp_path / "store", workers=placed("stages"))
    progress = progress_into(tmp_path)
    summary = run_collect(spec, progress=progress)
    require_same(tmp_path / "store", undisturbed)
    (one,) = prepare(spec, built_table(spec))
    require_operations_of(UnitCollector.open(one.of), progress, tmp_path)
    assert summary["worker_deaths"] == summary["retries"] == 0
    assert workers_of(tmp_path / "store") == {"collector-0.1", "collector-1.1"}
    assert not [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]


@pytest.mark.slow
def test_tensor_parallel_ranks_stay_within_the_bound_and_the_store_says_so(
    make_spec: Callable[..., CollectSpec], tmp_path: Path
) -> None:
    """In float32, so that nothing is hidden by rounding."""
    storage = {"dtype": "float32"}
    whole, split = (make_spec(tmp_path / name, storage=storage) for name in ("whole", "split"))
    (one,) = prepare(whole, built_table(whole))
    collector = UnitCollector.open(one.of)
    assert len(list(collect_units(collector, one.units))) == len(one.units)
    collector.writer.finish()

    workers = CollectWorkers.model_validate(placed("tensor"))
    progress = progress_into(tmp_path)
    summary = run_collect(split.model_copy(update={"workers": workers}), progress=progress)
    require_operations_of(collector, progress, tmp_path)
    assert summary["worker_deaths"] == summary["retries"] == 0
    assert workers_of(tmp_path / "split") == {"collector-0.1", "collector-1.1"}
    ours, theirs = Store.open(split.output), Store.open(whole.output)
    assert ours.verify(deep=True) == []
    for hook in HOOKS:
        rows, expected = (one.read_values(hook, 0, theirs.num_rows) for one in (ours, theirs))
        error = np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert error.max() <= BOUND[torch.float32], hook
    (record,) = [json.loads(path.read_bytes()) for path in (tmp_path / "split" / "passes").glob("*.json")]
    assert record["tensor_parallel"] == 2
    with pytest.raises(MismatchError, match="collected with tensor_parallel: 2"):
        run_collect(whole.model_copy(update={"output": split.output, "workers": CollectWorkers(placement="replica")}))
    assert run_collect(split)["reused"], "auto goes on with what was begun"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("placement", "number", "said"),
    [
        ("stages", 3, "processes_per_replica (3) is more than the 2 blocks"),
        ("tensor", 3, "processes_per_replica (3) does not divide num_attention_heads (2)"),
    ],
)
def test_too_many_processes_are_refused(
    make_spec: Callable[..., CollectSpec], tmp_path: Path, placement: str, number: int, said: str
) -> None:
    workers = placed(placement, num_workers=1, processes_per_replica=number)
    with pytest.raises((SpecError, ModelError), match=re.escape(said)):
        run_collect(make_spec(tmp_path / "store", workers=workers))


def stages_alive() -> list[psutil.Process]:
    """Processes of stages, in the order in which they were started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Stage"):
                found.append(process)
    return sorted(found, key=lambda process: process.create_time())


@pytest.mark.slow
def test_the_death_of_any_stage_at_any_point_of_a_unit_changes_nothing(
    make_spec: Callable[..., CollectSpec], tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two stages, and the last, which leads and alone writes the ledger."""
    points = {0: faults.POINTS[:2], 1: faults.POINTS}
    armed = [(index, point) for index in points for point in points[index]]
    for unit, (index, point) in enumerate(armed):
        (tmp_path / f"stage.{index}").mkdir(exist_ok=True)
        (tmp_path / f"stage.{index}" / f"armed.worker.{point}.{unit}").touch()
    monkeypatch.setattr(replica_stages, "Stage", faults.deadly_stage(tmp_path))
    spec = make_spec(tmp_path / "store", workers=placed("stages", num_workers=1))
    summary = run_collect(spec)
    assert len(list(tmp_path.glob("stage.*/fired.*"))) == len(armed)
    assert 1 <= summary["worker_deaths"] <= len(armed)
    require_same(tmp_path / "store", undisturbed)
    assert psutil.wait_procs(stages_alive(), timeout=10)[1] == [], "the others end with the one that died"
