"""Damage of any kind to any object of a store is found, and mended where anything is left to mend it from."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_job import HOOKS, built_table, small_spec

from pipeline.collection.prepare import prepare
from pipeline.collection.repair import Places, repair
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.verification import inspect
from schemas.collect import CollectSpec
from schemas.errors import CorruptionError, MissingError

FAULTS = ["flip", "cut", "grow", "remove"]


def collected(spec: CollectSpec) -> Store:
    for one in prepare(spec, built_table(spec)):
        collector = UnitCollector.open(one.of)
        for _ in collect_units(collector, one.units):
            pass
        collector.writer.finish()
    return Store.open(spec.output)


KINDS: dict[str, dict[str, Any]] = {
    "zarr": {"statistics": {"covariance": True, "outlier_tokens": 3}},
    "zarr int8": {"storage": {"dtype": "int8", "lossy": True}},
    "arrow": {"storage": {"layout": "arrow"}},
}


@pytest.fixture(scope="module", params=KINDS)
def built(request: pytest.FixtureRequest, model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound store of two passes and a few units with its token table; tests damage copies."""
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    (folder / "kind.json").write_text(json.dumps(KINDS[request.param]))
    changes = {"tokens": {"max_tokens": 250}, **KINDS[request.param]}
    collected(small_spec(model, corpus, folder / "store", hook_points=[HOOKS[0]], **changes))
    collected(small_spec(model, corpus, folder / "store", **changes))
    assert inspect(Objects(str(folder / "store")), is_deep=True).problems == []
    return folder / "store"


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "store"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def keys_of(folder: Path) -> list[str]:
    return [*content(folder)]


def one_of_each_kind(folder: Path) -> list[str]:
    """A key of every kind of object that the store has."""
    kinds: dict[str, str] = {}
    for key in keys_of(folder):
        parts = key.split("/")
        kinds.setdefault(
            f"{parts[0]} {parts[-1] if parts[-1].endswith('.json') and len(parts) == 3 else len(parts)}", key
        )
    return [*kinds.values()]


def damage(path: Path, fault: str, source: random.Random) -> None:
    held = path.read_bytes()
    if fault == "remove":
        path.unlink()
    elif fault == "flip":
        place, bit = source.randrange(len(held)), source.randrange(8)
        path.write_bytes(held[:place] + bytes([held[place] ^ 1 << bit]) + held[place + 1 :])
    else:
        path.write_bytes(held[: source.randrange(len(held))] if fault == "cut" else held + b"\0")


def people(data: bytes) -> dict[str, Any]:
    """A ledger entry without what is for people only: who wrote it, when it took how long."""
    facts = json.loads(data)
    facts = facts["attributes"]["headworks"] if "attributes" in facts else facts
    return {name: value for name, value in facts.items() if name not in SAID}


SAID = {"worker", "attempt", "seconds", "crc32c", "spec"}


def require_same(store: Path, built: Path, *, but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Byte for byte; of the ledger entries ``but``, all that readers use."""
    ours, theirs = content(store), content(built)
    assert {*ours} == {*theirs}
    for key, data in theirs.items():
        if key in but:
            assert people(ours[key]) == people(data), key
        else:
            assert ours[key] == data, key


def recover(store: Path, built: Path) -> None:
    for key, data in content(built).items():
        if not (store / key).exists() or (store / key).read_bytes() != data:
            (store / key).write_bytes(data)


def check(store: Path, built: Path, keys: list[str], fault: str) -> None:
    """The damage of ``keys`` is found, mended, and everything as it was; who wrote an entry is lost with the entry."""
    if fault in {"cut", "remove"} and "zarr.json" in keys:
        with pytest.raises(CorruptionError, match="run the job that made the store"):
            repair(str(store))
        recover(store, built)
        return
    found = inspect(Objects(str(store)), is_deep=True)
    assert {*keys} & found.damaged, (keys, fault)
    done = repair(str(store))
    assert done.remaining == [], (keys, fault)
    assert inspect(Objects(str(store)), is_deep=True).problems == [], (keys, fault)
    lost = {key for key in keys if key.startswith("ledger/") and fault not in {"flip", "grow"}}
    require_same(store, built, but=lost)
    recover(store, built)


def test_every_fault_of_every_kind_of_object_is_found_and_mended(built: Path, store: Path) -> None:
    source = random.Random(11)
    for place, key in enumerate(one_of_each_kind(built)):
        for fault in (FAULTS[place % 4], FAULTS[(place + 2) % 4]):
            damage(store / key, fault, source)
            check(store, built, [key], fault)


@pytest.mark.parametrize("number", range(4))
def test_every_event_of_the_log_that_is_gone_is_written_again(built: Path, store: Path, number: int) -> None:
    (store / f"log/{number:08d}.json").unlink()
    check(store, built, [f"log/{number:08d}.json"], "remove")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_random_damage_is_found_and_mended(built: Path, store: Path, seed: int) -> None:
    source = random.Random(seed)
    for _ in range(25):
        key, fault = source.choice(keys_of(built)), source.choice(FAULTS)
        damage(store / key, fault, source)
        check(store, built, [key], fault)


def swap(one: Path, other: Path) -> None:
    held, others = one.read_bytes(), other.read_bytes()
    one.write_bytes(others)
    other.write_bytes(held)


def same_place(built: Path) -> list[tuple[str, str]]:
    """Pairs that a swap might pass off: two units of a hook point, two hook points, two entries, two passes."""
    rows = [key for key in keys_of(built) if key.endswith((".arrow", "/c/0/0", "/c/1/0"))]
    entries = [key for key in keys_of(built) if key.startswith("ledger/")]
    passes = [key for key in keys_of(built) if key.startswith("passes/")]
    arrays = [key for key in keys_of(built) if key.startswith("activations/blocks") and key.endswith("y.json")]
    arrays += [key for key in keys_of(built) if key.startswith("activations/blocks") and key.endswith("zarr.json")]
    of_hook = sorted(rows)[:2]
    across = [next(key for key in rows if key.startswith(f"activations/{hook}/")) for hook in HOOKS]
    tokens = ["tokens/00000000.parquet", "tokens/00000001.parquet"]
    log = ["log/00000000.json", "log/00000001.json"]
    pairs = [of_hook, across, entries[:2], [entries[0], entries[-1]], passes, tokens, arrays, log]
    return [(one, other) for one, other in pairs]


def test_swapped_objects_are_found_and_mended(built: Path, store: Path) -> None:
    for one, other in same_place(built):
        swap(store / one, store / other)
        check(store, built, [one, other], "flip" if one.split("/")[:2] == other.split("/")[:2] else "swap")


def test_objects_of_another_store_are_found_and_mended(
    built: Path, store: Path, model: Path, corpus: Path, tmp_path: Path
) -> None:
    """The other store has the same shapes, hook points and number of tokens, and other text."""
    changes = {"tokens": {"max_tokens": 250, "seed": 3, "packing": {"context_length": 23}}}
    kind = json.loads((built.parent / "kind.json").read_text())
    theirs = tmp_path / "theirs" / "store"
    collected(small_spec(model, corpus, theirs, hook_points=[HOOKS[0]], **changes, **kind))
    collected(small_spec(model, corpus, theirs, **changes, **kind))
    for key in one_of_each_kind(built):
        if key == "zarr.json" or (theirs / key).read_bytes() == (built / key).read_bytes():
            continue
        (store / key).write_bytes((theirs / key).read_bytes())
        check(store, built, [key], "swap")
    (store / "zarr.json").write_bytes((theirs / "zarr.json").read_bytes())
    with pytest.raises(CorruptionError, match="expected the record of the store"):
        repair(str(store))


def test_much_damage_at_once_is_mended(built: Path, store: Path) -> None:
    source = random.Random(5)
    keys = [key for key in keys_of(built) if key != "zarr.json" and not key.startswith(("ledger/", "log/"))]
    for key in keys[::2]:
        damage(store / key, source.choice(FAULTS), source)
    check(store, built, keys[::2], "several")


def test_a_rehearsal_writes_nothing(built: Path, store: Path) -> None:
    source = random.Random(6)
    for key in one_of_each_kind(built)[1:]:
        damage(store / key, "flip", source)
    before = content(store)
    done = repair(str(store), is_rehearsal=True)
    assert content(store) == before
    assert {problem.key for problem in done.problems} <= {action.key for action in done.actions} | {"manifest.json"}


def test_without_the_token_table_the_stores_own_tokens_suffice(built: Path, store: Path) -> None:
    places = Places(tokens=str(store / "nowhere"))
    first = next(key for key in keys_of(built) if key.endswith((".arrow", "/c/0/0")))
    damage(store / first, "remove", random.Random(0))
    done = repair(str(store), places=places)
    assert done.remaining == []
    require_same(store, built)
    damage(store / "tokens/00000001.parquet", "flip", random.Random(0))
    damage(store / first, "flip", random.Random(0))
    done = repair(str(store), places=places)
    told = {action.key: action.what for action in done.actions if not action.is_possible}
    assert {*told} >= {"tokens/00000001.parquet"}
    assert "there is no token table at" in told["tokens/00000001.parquet"]
    assert "tokens/00000001.parquet" in {problem.key for problem in done.remaining}


def test_a_model_that_is_gone_or_another_is_named(built: Path, store: Path, tmp_path: Path) -> None:
    first = next(key for key in keys_of(built) if key.endswith((".arrow", "/c/0/0")))
    damage(store / first, "flip", random.Random(0))
    damaged = content(store)
    done = repair(str(store), places=Places(model=str(tmp_path / "nowhere")))
    (told,) = [action for action in done.actions if not action.is_possible]
    assert (told.key, "nowhere" in told.what) == (first, True)
    assert [problem.key for problem in done.remaining] == [first]
    assert content(store) == damaged, "nothing else was touched"


def test_a_repair_of_a_sound_store_touches_nothing(built: Path, store: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    assert repair(str(store)).actions == []
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()} == times


def test_a_record_that_is_gone_is_written_again_by_the_job(built: Path, store: Path, model: Path, corpus: Path) -> None:
    (store / "zarr.json").unlink()
    with pytest.raises(CorruptionError, match="headworks run SPEC"):
        repair(str(store))
    kind = json.loads((built.parent / "kind.json").read_text())
    tokens = {"max_tokens": 250, "output": str(built.parent / "tokens")}
    spec = small_spec(model, corpus, store, tokens=tokens, **kind)
    collected(spec)
    assert inspect(Objects(str(store)), is_deep=True).problems == []
    require_same(store, built, but={"zarr.json"})


def test_a_place_without_a_store_stays_empty(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        repair(str(tmp_path / "nothing"))
    assert [*tmp_path.iterdir()] == []
