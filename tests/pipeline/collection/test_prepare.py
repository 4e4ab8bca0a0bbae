"""What a job finds already done, what it refuses, and where the table goes."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from small_job import HOOKS, WIDTH, built_table, digests, small_spec

from pipeline.collection.prepare import Pending, planned_rows, prepare, require_space, table_url
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.store.reader import Store
from schemas.collect import CollectSpec
from schemas.errors import MismatchError, ResourceError

Usage = namedtuple("Usage", "total used free")


def run(spec: CollectSpec, *, at_most: int = 10**9) -> list[Pending]:
    passes = prepare(spec, built_table(spec))
    for one in passes:
        if units := [*one.units][:at_most]:
            collector = UnitCollector.open(one.of)
            list(collect_units(collector, units))
            if len(units) == len(one.units):
                collector.writer.finish()
    return passes


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("runs/q/store", "runs/q/tokens"),
        ("store/", "tokens"),
        ("s3://b/k/store", "s3://b/k/tokens"),
        ("/a/s", "/a/tokens"),
    ],
)
def test_the_table_lies_beside_the_store(output: str, expected: str) -> None:
    spec = small_spec(Path("m"), Path("c"), Path("s")).model_copy(update={"output": output})
    assert table_url(spec) == expected


def test_the_table_lies_where_the_spec_says() -> None:
    assert table_url(small_spec(Path("m"), Path("c"), Path("s"), tokens={"output": "s3://b/t"})) == "s3://b/t"


@pytest.mark.parametrize(("max_tokens", "rows"), [(0, 1000), (64, 64), (65, 128), (990, 1000), (5000, 1000)])
def test_rows_are_whole_shards_or_the_whole_table(max_tokens: int, rows: int) -> None:
    spec = small_spec(Path("m"), Path("c"), Path("s"), tokens={"max_tokens": max_tokens})
    assert planned_rows(spec, 1000) == rows


def test_a_new_store_lacks_everything(model: Path, corpus: Path, tmp_path: Path) -> None:
    (one,) = prepare(
        small_spec(model, corpus, tmp_path / "store"), built_table(small_spec(model, corpus, tmp_path / "store"))
    )
    assert list(one.units) == list(range(one.of.num_units))
    assert one.num_rows == one.of.num_rows
    assert one.of.hook_points == HOOKS
    assert not (tmp_path / "store").exists(), "planning writes nothing"


def test_a_job_goes_on_where_the_last_stopped(model: Path, corpus: Path, tmp_path: Path) -> None:
    spec = small_spec(model, corpus, tmp_path / "a" / "store")
    run(spec, at_most=3)
    (one,) = prepare(spec, built_table(spec))
    assert list(one.units) == list(range(3, one.of.num_units))
    assert one.num_rows == one.of.num_rows - 3 * 64
    run(spec)
    run(small_spec(model, corpus, tmp_path / "b" / "store"))
    assert digests(tmp_path / "a" / "store") == digests(tmp_path / "b" / "store")
    (done,) = prepare(spec, built_table(spec))
    assert not done.units
    assert done.widths == dict.fromkeys(HOOKS, WIDTH)


def test_only_missing_hook_points_are_collected(model: Path, corpus: Path, tmp_path: Path) -> None:
    run(small_spec(model, corpus, tmp_path / "store", hook_points=[HOOKS[0]]))
    before = digests(tmp_path / "store" / "activations" / HOOKS[0])
    done, new = run(small_spec(model, corpus, tmp_path / "store"))
    assert not done.units
    assert new.of.hook_points == (HOOKS[1],)
    store = Store.open(str(tmp_path / "store"))
    assert set(store.hook_points) == set(HOOKS)
    assert digests(tmp_path / "store" / "activations" / HOOKS[0]) == before
    (subset,) = prepare(
        small_spec(model, corpus, tmp_path / "store", hook_points=[HOOKS[0]]),
        built_table(small_spec(model, corpus, tmp_path / "store")),
    )
    assert not subset.units


def test_more_tokens_add_units_and_leave_the_old_ones(model: Path, corpus: Path, tmp_path: Path) -> None:
    run(small_spec(model, corpus, tmp_path / "store", tokens={"max_tokens": 128}))
    before = {path: text for path, text in digests(tmp_path / "store").items() if "/c/" in path}
    (one,) = run(small_spec(model, corpus, tmp_path / "store", tokens={"max_tokens": 320}))
    assert list(one.units) == [2, 3, 4]
    after = digests(tmp_path / "store")
    assert all(after[path] == text for path, text in before.items())
    assert Store.open(str(tmp_path / "store")).num_rows == 320


def test_fewer_tokens_need_nothing(model: Path, corpus: Path, tmp_path: Path) -> None:
    run(small_spec(model, corpus, tmp_path / "store", tokens={"max_tokens": 320}))
    (one,) = run(small_spec(model, corpus, tmp_path / "store", tokens={"max_tokens": 128}))
    assert not one.units
    assert Store.open(str(tmp_path / "store")).num_rows == 320


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"storage": {"dtype": "float32"}}, "storage.dtype"),
        ({"model": {"attention": "eager"}}, "model.attention"),
        ({"tokens": {"output": "{tmp}/other", "seed": 1}}, "table"),
        ({"batch_tokens": 48}, "batch_tokens"),
        ({"statistics": {"covariance": True}}, r"statistics\.covariance"),
    ],
)
def test_a_store_of_another_identity_is_refused_by_field(
    changes: dict[str, dict[str, str]], field: str, model: Path, corpus: Path, tmp_path: Path
) -> None:
    run(small_spec(model, corpus, tmp_path / "store"), at_most=1)
    if "tokens" in changes:
        changes = {"tokens": changes["tokens"] | {"output": str(tmp_path / "other")}}
    spec = small_spec(model, corpus, tmp_path / "store", **changes)
    with pytest.raises(MismatchError, match=field):
        prepare(spec, built_table(spec))


def test_a_disk_that_is_too_small_is_refused_before_the_start(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_spec(model, corpus, tmp_path / "store")
    (one,) = prepare(spec, built_table(spec))
    widths = dict.fromkeys(HOOKS, WIDTH)
    require_space(one.of, widths, one.of.num_rows)
    needed = one.of.num_rows * 2 * WIDTH * 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, needed - 1))
    with pytest.raises(ResourceError, match="max_tokens"):
        require_space(one.of, widths, one.of.num_rows)
    require_space(one.of, widths, one.of.num_rows - 1)
