"""Shuffling in one process: every row once, in one order, whatever the memory and whoever dies."""

from __future__ import annotations

import random
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_store import CONTEXT, ROW_BYTES, objects_of, shuffle_spec, write_source

from pipeline.shuffling.prepare import prepare, require_space
from pipeline.shuffling.runs import Runs
from pipeline.shuffling.tasks import Shuffling, shuffle_here
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.retention import read_retention
from pipeline.store.statistics import standard_deviation
from schemas.errors import CorruptionError, HookPointError, MismatchError, ResourceError, SpecError

Usage = namedtuple("Usage", "total used free")
SMALL = 64 * ROW_BYTES
"""Memory for one unit."""


def shuffled(source: str, output: Path, *, min_section_bytes: int = 64, **facts: Any) -> Store:
    shuffle_here(prepare(shuffle_spec(source, output, **facts), min_section_bytes=min_section_bytes))
    return Store.open(str(output))


def require_permutation(store: Store, source: Store) -> None:
    """Every row of the source once, with its own words and token facts."""
    tokens, before = store.tokens(), source.tokens()
    rows = tokens.source_row
    assert rows is not None
    assert np.array_equal(np.sort(rows), np.arange(source.num_rows))
    assert np.array_equal(tokens.row, np.arange(source.num_rows))
    for name in ("token_id", "document_id", "position", "held_out"):
        np.testing.assert_array_equal(getattr(tokens, name), getattr(before, name)[rows])
    np.testing.assert_array_equal(tokens.context, before.context[rows])
    for hook in store.hook_points:
        np.testing.assert_array_equal(store.read_rows(hook, 0, len(rows)), source.gather(hook, rows))


@settings(deadline=None, max_examples=10)
@given(
    memory=st.integers(SMALL, 600 * ROW_BYTES * 2),
    min_section_bytes=st.sampled_from([1, 300, 10**9]),
    num_rows=st.integers(1, 200),
    seed=st.integers(0, 2**40),
)
def test_every_row_once_in_an_order_that_memory_does_not_change(
    memory: int, min_section_bytes: int, num_rows: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    source = str(folder / "source")
    write_source(source, num_rows)
    job = prepare(shuffle_spec(source, folder / "new", memory=memory, seed=seed), min_section_bytes=min_section_bytes)
    shuffle_here(job)
    store = Store.open(str(folder / "new"))
    require_permutation(store, Store.open(source))
    assert np.array_equal(job.permutation.apply(store.tokens().source_row), np.arange(num_rows))
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("memory", "min_section_bytes", "passes"), [(2**20, 1, 1), (SMALL, 1, 2), (SMALL, 200, 3), (SMALL, 10**9, 5)]
)
def test_more_passes_with_less_memory(
    source: str, tmp_path: Path, memory: int, min_section_bytes: int, passes: int
) -> None:
    job = prepare(shuffle_spec(source, tmp_path / "store", memory=memory), min_section_bytes=min_section_bytes)
    assert job.plan.num_passes == passes
    shuffle_here(job)
    store, before = Store.open(str(tmp_path / "store")), Store.open(source)
    require_permutation(store, before)
    assert sorted(sorted(one.hook_points) for one in store.passes.values()) == [["attn"], ["mlp", "resid"]]
    assert {one.batch_tokens for one in store.passes.values()} == {8, 16}
    assert [*(tmp_path / "store.scratch").rglob("*.*")] == []


@pytest.mark.parametrize("storage", [{"dtype": "float32", "codec": "zstd"}, {"layout": "arrow", "dtype": "float16"}])
def test_any_lossless_storage(storage: dict[str, Any], tmp_path: Path) -> None:
    write_source(str(tmp_path / "source"), 100, **storage)
    store = shuffled(str(tmp_path / "source"), tmp_path / "store", memory=4 * SMALL)
    require_permutation(store, Store.open(str(tmp_path / "source")))
    assert (store.record.layout, store.dtype) == (storage.get("layout", "zarr"), storage["dtype"])


def test_statistics_are_those_of_the_source(source: str, tmp_path: Path) -> None:
    store, before = shuffled(source, tmp_path / "store", memory=SMALL), Store.open(source)
    for hook, statistics in store.statistics.items():
        assert statistics.norms == before.statistics[hook].norms
        np.testing.assert_allclose(statistics.mean, before.statistics[hook].mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            standard_deviation(statistics), standard_deviation(before.statistics[hook]), rtol=1e-12
        )
        outliers = [(one.token_id, one.norm) for one in statistics.outliers]
        assert outliers == [(one.token_id, one.norm) for one in before.statistics[hook].outliers]


def test_neighbours_are_strangers(tmp_path: Path) -> None:
    """Neighbours are of one context as often as chance has it: each of 4799 pairs with a chance of 11 / 4799."""
    write_source(str(tmp_path / "source"), 4800, chunk_rows=64, shard_rows=512)
    tokens = shuffled(str(tmp_path / "source"), tmp_path / "store").tokens()
    expected = CONTEXT - 1
    assert abs(int((tokens.context[1:] == tokens.context[:-1]).sum()) - expected) < 4 * expected**0.5
    rows = np.asarray(tokens.source_row, dtype=np.float64)
    for lag in (1, 2, 64):
        assert abs(np.corrcoef(rows[:-lag], rows[lag:])[0, 1]) < 4 / 4800**0.5


def test_seeds_differ_and_stores_of_one_table_stay_aligned(source: str, tmp_path: Path) -> None:
    first = shuffled(source, tmp_path / "first")
    other = shuffled(source, tmp_path / "other", seed=1)
    assert first.tokens() != other.tokens()
    write_source(str(tmp_path / "model"), model="another")
    model = shuffled(str(tmp_path / "model"), tmp_path / "aligned", hook_points=["attn"])
    assert model.tokens() == first.tokens()
    assert model.table_fingerprint == first.table_fingerprint
    assert len({store.table_fingerprint for store in (first, other, Store.open(source))}) == 3
    assert model.fingerprint != first.fingerprint
    assert first.record.shuffled is not None
    assert first.record.shuffled.table_fingerprint == Store.open(source).table_fingerprint


def test_hook_points_can_follow_later(source: str, tmp_path: Path) -> None:
    shuffled(source, tmp_path / "store", hook_points=["attn"])
    before = objects_of(tmp_path / "store")
    store = shuffled(source, tmp_path / "store", hook_points=["resid"], memory=SMALL)
    assert {*store.hook_points} == {"attn", "resid"}
    require_permutation(store, Store.open(source))
    after = objects_of(tmp_path / "store")
    assert all(after[key] == data for key, data in before.items() if "/attn/" in key or key.startswith("tokens/"))


class Killed(BaseException):
    """As good as a kill: nothing cleans up after it."""


class MortalObjects(Objects):
    """Dies before or after the given write."""

    def __init__(self, url: str, after: int) -> None:
        super().__init__(url)
        self.left = after

    def create(self, key: str, data: Any) -> bool:
        self._count()
        made = super().create(key, data)
        self._count()
        return made

    def write(self, key: str, data: Any) -> None:
        self._count()
        super().write(key, data)
        self._count()

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def mortal(shuffling: Shuffling, chance: random.Random, writes: int) -> Shuffling:
    """One that dies at one of so many writes."""

    def dying(objects: Objects) -> Objects:
        return MortalObjects(objects.url, chance.randrange(writes))

    one = replace(shuffling, writers=[replace(writer, objects=dying(writer.objects)) for writer in shuffling.writers])
    one.__dict__["runs"] = Runs(dying(Objects(shuffling.job.scratch)), shuffling.job.columns)
    return one


@pytest.mark.parametrize("seed", range(3))
def test_kills_at_any_write_change_nothing(source: str, tmp_path: Path, seed: int) -> None:
    job = prepare(shuffle_spec(source, tmp_path / "store", memory=SMALL), min_section_bytes=300)
    chance, deaths, is_over = random.Random(seed), 0, False
    while not is_over:
        shuffling = mortal(Shuffling.open(job), chance, 40 if deaths < 5 else 10**6)
        try:
            for level, tasks in shuffling.stages():
                for task in chance.sample(tasks, len(tasks)):
                    shuffling.do(level, task)
            is_over = True
        except Killed:
            deaths += 1
    assert deaths == 5
    Shuffling.open(job).finish()
    shuffled(source, tmp_path / "undisturbed")
    assert objects_of(tmp_path / "store") == objects_of(tmp_path / "undisturbed")
    assert Store.open(str(tmp_path / "store")).verify(deep=True) == []


def test_a_finished_shuffle_has_nothing_left_to_do(source: str, tmp_path: Path) -> None:
    job = prepare(shuffle_spec(source, tmp_path / "store", memory=SMALL))
    shuffle_here(job)
    assert [*Shuffling.open(job).stages()] == []
    before = objects_of(tmp_path / "store")
    shuffle_here(job)
    assert objects_of(tmp_path / "store") == before


def test_lost_rows_are_noticed(source: str, tmp_path: Path) -> None:
    job = prepare(shuffle_spec(source, tmp_path / "store", memory=SMALL), min_section_bytes=1)
    shuffling = Shuffling.open(job)
    for task in shuffling.missing(1):
        shuffling.scatter(1, task)
    for kind in ("rows", "json"):  # a run in another's place, sound in itself
        place = Path(job.scratch, "1")
        shutil.copy(place / f"00000000.{kind}", place / f"00000001.{kind}")
    with pytest.raises(CorruptionError, match=r"(?s)expected each row of bucket 0 once.*run the shuffle again"):
        shuffling.gather(0)


def test_what_cannot_be_shuffled_is_refused(source: str, tmp_path: Path) -> None:
    shuffled(source, tmp_path / "store")
    with pytest.raises(SpecError, match="shuffled already"):
        prepare(shuffle_spec(str(tmp_path / "store"), tmp_path / "again"))
    with pytest.raises(HookPointError, match=r"'resit'.*resid"):
        prepare(shuffle_spec(source, tmp_path / "other", hook_points=["resit"]))
    with pytest.raises(MismatchError, match=r"shuffled\.seed"):
        shuffled(source, tmp_path / "store", seed=1)
    with pytest.raises(ResourceError, match=r"workers\.memory"):
        prepare(shuffle_spec(source, tmp_path / "other", memory=1000))


def test_a_source_that_grew_meanwhile_is_refused(tmp_path: Path) -> None:
    write_source(str(tmp_path / "source"), 64)
    job = prepare(shuffle_spec(str(tmp_path / "source"), tmp_path / "store"))
    write_source(str(tmp_path / "source"), 96)
    with pytest.raises(MismatchError, match="num_rows: this job has 64"):
        Shuffling.open(job)


def test_a_disk_that_is_too_small_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_pass = prepare(shuffle_spec(source, tmp_path / "store"))
    two_passes = prepare(shuffle_spec(source, tmp_path / "store", memory=SMALL), min_section_bytes=1)
    needed = 2 * 500 * ROW_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, needed - 1))
    require_space(one_pass)
    with pytest.raises(ResourceError, match=r"(?s)has .* free.*scratch"):
        require_space(two_passes)
    shuffling = Shuffling.open(two_passes)  # what is written already need not fit once more
    shuffling.scatter(1, 0)
    require_space(two_passes)


def test_the_quota_and_the_retention_of_the_new_store_are_kept(source: str, tmp_path: Path) -> None:
    whole = Store.open(source).num_rows * prepare(shuffle_spec(source, tmp_path / "x")).runs.row_bytes
    tight = shuffle_spec(source, tmp_path / "tight", retention={"quota": f"{whole - 1}B"})
    with pytest.raises(ResourceError, match=r"retention\.quota"):
        require_space(prepare(tight))
    assert not (tmp_path / "tight").exists()
    enough = prepare(shuffle_spec(source, tmp_path / "enough", retention={"quota": f"{whole}B", "ttl": "2d"}))
    require_space(enough)
    shuffle_here(enough)
    assert read_retention(Objects(enough.spec.output)).expires > 0
