"""The plan of a collection against what the collection then writes: before, in the middle, and after."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "collection"))

from small_job import HOOKS, WIDTH, built_table, save_corpus, save_model, small_spec

from pipeline.collection.prepare import prepare
from pipeline.collection.snapshots import snapshot_jobs
from pipeline.collection.unit import UnitCollector
from pipeline.planning.collection import plan_collection
from pipeline.planning.jobs import plan
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from schemas.collect import CollectSpec
from schemas.errors import MismatchError, ResourceError
from schemas.pipeline import PipelineSpec
from schemas.plan import JobPlan, PlanAssumptions

NOTHING = PlanAssumptions()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return save_model(folder / "model"), save_corpus(folder / "corpus")


@pytest.fixture
def spec(parts: tuple[Path, Path], tmp_path: Path) -> CollectSpec:
    return small_spec(*parts, tmp_path / "store")


def collect(spec: CollectSpec, units: slice = slice(None)) -> None:
    """Without Ray."""
    for one in prepare(spec, built_table(spec)):
        collector = UnitCollector.open(one.of)
        for unit in [*one.units][units]:
            collector.collect(unit)
        if units == slice(None):
            collector.writer.finish()


def planned(spec: CollectSpec, assumptions: PlanAssumptions = NOTHING, *, measured: bool = False) -> JobPlan:
    return plan_collection(spec, assumptions, measured=measured)[0]


def data_bytes(spec: CollectSpec) -> int:
    return sum(
        size for key, size in Objects(spec.output).sizes().items() if key.startswith("activations/") and "/c/" in key
    )


def test_a_plan_writes_nothing(spec: CollectSpec, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = planned(spec)
    assert sorted(tmp_path.rglob("*")) == before
    assert found.store is not None
    assert found.store.hook_points == dict.fromkeys(HOOKS, WIDTH)
    assert found.money is None
    assert any("rates.tokens_per_s" in note for note in found.notes)


def test_what_is_planned_is_what_is_written(spec: CollectSpec) -> None:
    guessed = planned(spec).store
    built_table(spec)
    found = planned(spec).store
    assert found is not None
    assert guessed is not None
    assert (found.rows.basis, found.size_bytes.basis) == ("exact", "exact")
    collect(spec)
    store = Store.open(spec.output)
    assert found.rows.value == store.num_rows
    # All of the corpus was in the sample.
    assert guessed.rows.value == pytest.approx(store.num_rows, rel=0.02)
    assert sum(found.bytes_per_hook_point.values()) == data_bytes(spec)
    assert found.units == store.num_units
    assert found.objects == pytest.approx(len(Objects(spec.output).sizes()), abs=3)
    after = planned(spec).store
    assert after is not None
    assert (after.units, after.missing_rows.value, after.size_bytes.value, after.puts) == (0, 0, 0, 0)
    assert after.total_bytes.value == sum(Objects(spec.output).sizes().values())


def test_what_is_there_is_not_counted(spec: CollectSpec) -> None:
    collect(spec, slice(0, 2))
    begun = planned(spec).store
    assert begun is not None
    written = data_bytes(spec)
    collect(spec)
    assert sum(begun.bytes_per_hook_point.values()) == data_bytes(spec) - written
    num_rows = Store.open(spec.output).num_rows
    assert begun.missing_rows.value == num_rows - 2 * 64
    more = spec.model_copy(update={"hook_points": [*HOOKS, "blocks.0.hook_mlp_out"]})
    added = planned(more).store
    assert added is not None
    assert [*added.hook_points] == ["blocks.0.hook_mlp_out"]
    assert added.missing_rows.value == num_rows
    # Token rows are there.
    assert added.objects < 2 * added.units + 10


def test_a_store_of_other_facts_is_refused_as_the_job_would(spec: CollectSpec) -> None:
    collect(spec)
    other = spec.model_copy(update={"storage": spec.storage.model_copy(update={"codec": "zstd"})})
    with pytest.raises(MismatchError, match=r"storage\.codec"):
        planned(other)


def test_rates_make_hours_and_prices_money(spec: CollectSpec) -> None:
    built_table(spec)
    facts: dict[str, Any] = {
        "prices": {"storage_gb_month": 2e3, "put_thousand": 50, "get_thousand": 1, "egress_gb": 0, "device_hour": 360}
        | {"currency": "EUR"},
        "rates": {"tokens_per_s": 10, "num_devices": 2},
        "months": 3,
    }
    found = planned(spec, PlanAssumptions.model_validate(facts))
    assert found.time is not None
    assert found.store is not None
    assert found.reuse is not None
    rows = found.store.rows.value
    assert found.time.hours == pytest.approx(rows / 10 / 3600)
    keep = found.store.total_bytes.value / 1e9 * 2e3 * 3
    assert found.money == pytest.approx(rows / 10 / 3600 * 2 * 360 + found.store.puts * 0.05 + keep)
    assert found.reuse.collect == pytest.approx(rows / 10 / 3600 * 2 * 360)
    facts["rates"] = {"flop_per_s": 1e6, "num_devices": 2}
    by_work = planned(spec, PlanAssumptions.model_validate(facts)).time
    assert by_work is not None
    assert by_work.basis == "operations"
    assert by_work.hours == pytest.approx(found.store.flop / 2e6 / 3600)
    facts["rates"] = {"tokens_per_s": 1e9, "storage_bytes_per_s": 1000}
    bound = planned(spec, PlanAssumptions.model_validate(facts)).time
    assert bound is not None
    assert bound.basis == "storage"
    assert bound.hours == pytest.approx(found.store.size_bytes.value / 1000 / 3600)


def test_a_rate_can_be_measured(spec: CollectSpec) -> None:
    found = planned(spec, measured=True).time
    assert found is not None
    assert found.basis == "measured"
    assert found.hours < 1


def test_a_quota_is_kept(spec: CollectSpec) -> None:
    size = planned(spec).store
    assert size is not None
    small = spec.model_copy(
        update={"retention": spec.retention.model_copy(update={"quota": size.size_bytes.value // 2})}
    )
    with pytest.raises(ResourceError, match=r"retention\.quota"):
        plan(small, NOTHING)
    enough = spec.model_copy(
        update={"retention": spec.retention.model_copy(update={"quota": 2 * size.size_bytes.value})}
    )
    assert plan(enough, NOTHING).size_bytes == size.size_bytes.value


@pytest.fixture
def pipeline(spec: CollectSpec, tmp_path: Path) -> PipelineSpec:
    train = {
        "kind": "train", "store": "${collect}", "output": str(tmp_path / "dictionaries"), "batch_rows": 32,
        "num_epochs": 2, "workers": {"num_workers": 2},
        "dictionaries": [
            {"name": "a", "sources": [HOOKS[0]], "num_latents": 64, "activation": {"kind": "topk", "k": 4}}
        ],
    }  # fmt: skip
    facts = {"kind": "pipeline", "jobs": [spec.model_dump(mode="json"), train], "output": str(tmp_path)}
    return PipelineSpec.model_validate(facts)


def test_training_is_planned_on_a_store_to_be(pipeline: PipelineSpec, spec: CollectSpec) -> None:
    before = plan(pipeline, NOTHING).jobs[1].train
    assert before is not None
    collect(spec)
    after = plan(pipeline, NOTHING).jobs[1].train
    assert after is not None
    from pipeline.order.feed import RowFeed
    from schemas.train import RowFilter, RowOrder, TrainWorkers

    feed = RowFeed(Store.open(spec.output), [HOOKS[0]], rows=RowFilter(), order=RowOrder(), batch_rows=32)
    assert after.rows_per_epoch.value == pytest.approx(feed.rows_per_epoch, rel=0.01)
    assert before.rows_per_epoch.value == pytest.approx(feed.rows_per_epoch, rel=0.05)
    assert after.steps == 2 * -(-after.rows_per_epoch.value // 32)
    num_rows = Store.open(spec.output).num_rows
    # Two ranks, two epochs, one hook point in bfloat16.
    assert after.read_bytes == 2 * 2 * num_rows * WIDTH * 2
    assert after.dictionary_bytes == {"a": 16 * (64 * (2 * WIDTH + 1) + WIDTH)}
    train = pipeline.jobs[1].model_copy(update={"workers": TrainWorkers(num_workers=2, latent_shards=2)})
    sharded = plan(pipeline.model_copy(update={"jobs": [pipeline.jobs[0], train]}), NOTHING).jobs[1].train
    assert sharded is not None
    assert sharded.dictionary_bytes == {"a": 16 * (32 * (2 * WIDTH + 1) + WIDTH)}
    # Both ranks read all rows.
    assert (sharded.read_bytes, sharded.window_bytes) == (after.read_bytes, 2 * after.window_bytes)


def test_dictionaries_that_do_not_fit_are_refused(pipeline: PipelineSpec) -> None:
    tight = PlanAssumptions.model_validate({"limits": {"memory": "64KiB"}})
    with pytest.raises(ResourceError, match="training needs"):
        plan(pipeline, tight)
    plan(pipeline, PlanAssumptions.model_validate({"limits": {"memory": "1GiB"}}))


def test_what_does_not_fit_on_the_disk_is_refused(pipeline: PipelineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of this machine cannot be made full in a test, so its answer is."""
    import shutil

    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(ResourceError, match=r"9\.77 KiB free, the plan needs .*collect"):
        plan(pipeline, NOTHING)


def test_a_plan_of_snapshots_sums_over_them_and_feeds_a_training(spec: CollectSpec, tmp_path: Path) -> None:
    """One is collected already: what is left is that of the other two, each as planned alone."""
    facts = spec.model_dump(mode="json") | {"output": str(tmp_path / "group")}
    snapshots = {"a": {}, "b": {"dtype": "bfloat16"}, "c": {"dtype": "float16"}}
    group = CollectSpec.model_validate(facts | {"snapshots": snapshots})
    jobs = snapshot_jobs(group)
    collect(jobs["a"])
    found = plan(group, NOTHING)
    stores = [one.store for one in found.jobs if one.store is not None]
    alone = [planned(one).store for one in jobs.values()]
    assert stores == alone
    assert [store.units for store in stores] == [0, stores[1].units, stores[1].units]
    assert stores[1].units > 0
    assert found.size_bytes == sum(store.size_bytes.value for store in stores)
    source = HOOKS[0]
    train = {
        "kind": "train", "store": "${collect}", "output": str(tmp_path / "trained"),
        "dictionaries": [
            {"name": "d", "sources": [f"{name}/{source}" for name in "ac"], "num_latents": 8,
             "activation": {"kind": "topk", "k": 2}},
        ],
    }  # fmt: skip
    pipeline = {"kind": "pipeline", "jobs": [group.model_dump(mode="json"), train], "output": str(tmp_path)}
    *_, last = plan(PipelineSpec.model_validate(pipeline), NOTHING).jobs
    assert last.train is not None
    rows = stores[1].rows.value
    assert last.train.read_bytes == pytest.approx(last.train.epochs * rows * 2 * 2 * WIDTH)
    train["dictionaries"][0]["sources"] = [f"d/{source}"]
    with pytest.raises(MismatchError, match="did you mean 'c/"):
        plan(PipelineSpec.model_validate(pipeline), NOTHING)
