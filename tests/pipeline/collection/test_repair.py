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
from pipeline.collection.repair import repair
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.verification import inspect
from schemas.collect import CollectSpec
from schemas.errors import CorruptionError

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
    return {name: value for name, value in json.loads(data).items() if name not in SAID}


SAID = {"worker", "attempt", "seconds", "crc32c"}


def require_same(store: Path, built: Path, *, but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Byte for byte; of the ledger entries ``but``, all that readers use."""
    ours, theirs = content(store), content(built)
    assert {*ours} == {*theirs}
    for key, data in theirs.items():
        if key in but:
            assert people(ours[key]) == people(data), key
        else:
            assert ours[key] == data, key


def test_every_fault_of_every_kind_of_object_is_found_and_mended(built: Path, store: Path) -> None:
    source = random.Random(11)
    for key in one_of_each_kind(built):
        for fault in FAULTS:
            damage(store / key, fault, source)
            if key == "zarr.json" and fault != "flip":
                if fault == "grow":
                    (store / key).write_bytes((built / key).read_bytes())
                    continue
                with pytest.raises(CorruptionError, match="run the job that made the store"):
                    repair(str(store))
                (store / key).write_bytes((built / key).read_bytes())
                continue
            found = inspect(Objects(str(store)), is_deep=True)
            assert key in found.damaged, (key, fault)
            done = repair(str(store))
            assert done.remaining == [], (key, fault)
            lost = key.startswith("ledger/") and fault in {"cut", "remove"}
            require_same(store, built, but={key} if lost else frozenset())
            if lost:
                (store / key).write_bytes((built / key).read_bytes())
