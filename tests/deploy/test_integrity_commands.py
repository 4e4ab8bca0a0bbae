"""``headworks store verify|repair|gc``: what they say, what they do and how they end."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.store.leases import held
from pipeline.store.objects import Objects

# The small job of the collection tests; test modules have no packages, so the path finds it.
sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline" / "collection"))

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three units beside the model and the token table that made it."""
    from small_job import built_table, save_corpus, save_model, small_spec

    from pipeline.collection.prepare import prepare
    from pipeline.collection.unit import UnitCollector, collect_units

    folder = tmp_path_factory.mktemp("built")
    model, corpus = save_model(folder / "model"), save_corpus(folder / "corpus")
    spec = small_spec(model, corpus, folder / "store", tokens={"max_tokens": 192})
    (one,) = prepare(spec, built_table(spec))
    collector = UnitCollector.open(one.of)
    assert len([*collect_units(collector, one.units)]) == 3
    collector.writer.finish()
    return folder


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "store", tmp_path / "store"))


def shard(store: Path) -> Path:
    return next(path for path in sorted(store.glob("activations/*/c/1/0")))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)


def test_a_sound_store_verifies_with_0(headworks: Run, store: Path) -> None:
    code, out, _ = headworks("store", "verify", str(store))
    assert (code, "every byte is as committed" in out) == (0, True)
    code, out, _ = headworks("store", "verify", str(store), "--quick")
    assert (code, "no data was read" in out) == (0, True)


def test_damage_is_named_mended_and_gone(headworks: Run, store: Path, built: Path) -> None:
    flip(shard(store))
    key = str(shard(store).relative_to(store))
    code, out, _ = headworks("store", "verify", str(store))
    assert (code, key in out) == (1, True)
    code, out, _ = headworks("store", "verify", str(store), "--quick")
    assert code == 0, "the length is as it was"
    code, out, _ = headworks("store", "verify", str(store), "--json")
    facts = json.loads(out)
    assert (code, len(facts["problems"]), facts["is_deep"]) == (1, 1, True)

    before = shard(store).read_bytes()
    code, out, _ = headworks("store", "repair", str(store), "--dry-run")
    assert (code, "would be collected again" in out) == (0, True)
    assert shard(store).read_bytes() == before
    assert not (store / "leases").exists()
    code, out, _ = headworks("store", "repair", str(store))
    assert (code, "the very bytes that were committed" in out) == (0, True)
    assert shard(store).read_bytes() == shard(built / "store").read_bytes()
    code, out, _ = headworks("store", "repair", str(store))
    assert (code, "nothing to repair" in out) == (0, True)
    code, out, _ = headworks("store", "verify", str(store), "--deep")
    assert code == 0


def test_what_cannot_be_repaired_is_explained_with_1(headworks: Run, store: Path, built: Path) -> None:
    flip(shard(store))
    (built / "model").rename(built / "moved")
    try:
        code, out, _ = headworks("store", "repair", str(store))
        assert code == 1
        assert "NOT REPAIRED" in out
        assert str(built / "model") in out
        code, out, _ = headworks("store", "repair", str(store), "--model", str(built / "moved"))
        assert code == 0
    finally:
        (built / "moved").rename(built / "model")


def test_units_are_computed_again_and_compared(headworks: Run, store: Path) -> None:
    code, out, _ = headworks("store", "verify", str(store), "--quick", "--recompute", "2", "--seed", "7")
    assert code == 0
    assert out.count("all 64 rows are equal") == 4
    code, out, _ = headworks("store", "verify", str(store), "--quick", "--recompute", "2", "--seed", "7", "--json")
    facts = json.loads(out)
    assert code == 0
    assert {(one["rows"], one["equal_rows"], one["greatest_relative_difference"]) for one in facts["recomputed"]} == {
        (64, 64, 0.0)
    }


def test_gc_deletes_what_nothing_names_and_only_that(headworks: Run, store: Path, built: Path) -> None:
    left = store / "activations" / "blocks.0.hook_resid_post" / "c" / "9" / "0"
    left.parent.mkdir()
    left.write_bytes(b"x" * 1000)
    torn = store / "tokens" / ".00000009.parquet.1-ab.partial"
    torn.write_bytes(b"y" * 24)
    (store / "README").write_text("of people")
    code, out, _ = headworks("store", "gc", str(store), "--json")
    assert (code, json.loads(out)["swept"], len(json.loads(out)["kept_for_now"])) == (0, [], 2)
    for path in (left, torn):
        os.utime(path, (time.time() - 3700,) * 2)
    code, out, _ = headworks("store", "gc", str(store), "--dry-run")
    assert (code, "2 objects, 1 KiB would be deleted" in out) == (0, True)
    assert left.exists()
    code, out, _ = headworks("store", "gc", str(store), "--json")
    assert {one["kind"]: one["bytes"] for one in json.loads(out)["swept"]} == {
        "leftover object": 1000,
        "partial file": 24,
    }
    assert not left.exists()
    assert not torn.exists()
    assert (store / "README").exists()
    assert headworks("store", "verify", str(store))[0] == 0


def test_gc_and_repair_refuse_a_store_in_use_with_2(headworks: Run, store: Path) -> None:
    with held(Objects(str(store)), "collect") as lease:
        for command in ("gc", "repair"):
            code, out, err = headworks("store", command, str(store))
            assert (code, out) == (2, "")
            assert f"{lease.job} of {lease.owner}" in err
        code, out, _ = headworks("store", "gc", str(store), "--dry-run")
        assert (code, lease.job in out) == (0, True)


def test_gc_refuses_a_damaged_ledger_with_1(headworks: Run, store: Path) -> None:
    left = store / "activations" / "blocks.0.hook_resid_post" / "c" / "9" / "0"
    left.parent.mkdir()
    left.write_bytes(b"x")
    next(store.glob("ledger/*/00000001.json")).write_bytes(b"{}")
    code, _, err = headworks("store", "gc", str(store), "--grace-minutes", "0")
    assert (code, "nothing was swept" in err) == (1, True)
    assert left.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "nothing"),
        ("repair", "nothing"),
        ("gc", "nothing"),
        ("verify", "nothing", "--recompute", "-1"),
        ("gc", "nothing", "--grace-minutes", "-1"),
    ],
)
def test_wrong_arguments_end_with_2(
    headworks: Run, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert headworks("store", *words)[0] == 2
    assert [*tmp_path.iterdir()] == []
