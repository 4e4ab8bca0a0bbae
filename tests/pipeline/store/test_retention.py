"""Pins, expiry and pruning: only what may go goes, in the right order, and a killed deletion is finished later."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interleaving import Killed, Turns

from pipeline.store import retention
from pipeline.store.catalogue import find_stores
from pipeline.store.deletion import delete_store
from pipeline.store.documents import sealed, to_bytes
from pipeline.store.leases import held
from pipeline.store.objects import Objects
from pipeline.store.pruning import Pruning, prune
from pipeline.store.reader import Store
from pipeline.store.retention import expire, keep_as_wished, note_use, noted_use, pin, read_last_use, read_retention
from schemas.errors import BusyError, CorruptionError, HeadworksError, IncompleteError, MissingError
from schemas.retention import LastUse, RetentionSpec

Maker = Callable[..., Any]
HOUR = 3600.0


def used(url: str, hours_ago: float) -> None:
    use = LastUse(job="train", owner="somebody", time=time.time() - hours_ago * HOUR)
    Objects(url).write(retention.LAST_USE, to_bytes(sealed(use)))


def actions(done: Pruning, root: str) -> dict[str, str]:
    return {one.url.removeprefix(f"{root}/"): one.action for one in done.stores}


@pytest.fixture
def root(tmp_path: Path, sample: Maker) -> str:
    """Three equal stores, used three, two and four days ago."""
    for name, days in (("a", 3), ("b", 2), ("c", 4)):
        sample(facts={"model": name}).write_all(str(tmp_path / name))
        used(str(tmp_path / name), 24 * days)
    return str(tmp_path)


@pytest.fixture
def size(root: str) -> int:
    return max(sum(Objects(f"{root}/{name}").sizes().values()) for name in "abc")


@pytest.fixture(autouse=True)
def made_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the noted uses decide."""
    monkeypatch.setattr(Objects, "times", lambda self, prefix="": dict.fromkeys(self.list(prefix), 1.0))


def test_pin_and_expiry_are_changed_one_by_one(root: str) -> None:
    url = f"{root}/a"
    objects = Objects(url)
    assert not read_retention(objects).is_pinned
    assert pin(url, is_pinned=True).is_pinned
    before = time.time()
    changed = expire(url, after_s=HOUR)
    assert changed.is_pinned
    assert before + HOUR <= changed.expires <= time.time() + HOUR
    assert pin(url, is_pinned=False).expires == changed.expires
    assert expire(url, after_s=None).expires == 0
    Store.open(url).verify(deep=True)
    with pytest.raises(MissingError, match="no activation store"):
        pin(f"{root}/nothing", is_pinned=True)
    objects.write(retention.RETENTION, objects.read(retention.RETENTION).replace(b"false", b"true"))
    with pytest.raises(CorruptionError, match="CRC-32C"):
        read_retention(objects)


def test_a_job_wishes_once(root: str) -> None:
    objects = Objects(f"{root}/a")
    keep_as_wished(objects, RetentionSpec())
    assert not objects.exists(retention.RETENTION)
    keep_as_wished(objects, RetentionSpec(ttl="2d", pin=True))  # type: ignore[arg-type]
    kept = read_retention(objects)
    assert kept.is_pinned
    assert abs(kept.expires - time.time() - 48 * HOUR) < 60
    keep_as_wished(objects, RetentionSpec(ttl="1h"))  # type: ignore[arg-type]
    assert read_retention(objects) == kept


def test_uses_are_noted_again_and_a_store_for_reading_only_does_without(root: str, tmp_path: Path) -> None:
    noted: list[float] = []
    with noted_use([f"{root}/a"], "train", every_s=0.02):
        while len(noted) < 3:
            use = read_last_use(Objects(f"{root}/a"))
            assert use is not None
            if use.time not in noted:
                noted.append(use.time)
    assert not [one for one in threading.enumerate() if one.name == "use-train"]
    (tmp_path / "file").write_bytes(b"")
    note_use(str(tmp_path / "file" / "store"), "train")


def test_what_is_used_longest_ago_goes_until_the_quota_holds(root: str, size: int) -> None:
    rehearsed = prune([root], quota_bytes=2 * size, is_rehearsal=True)
    assert actions(rehearsed, root) == {"c": "deleted", "a": "kept", "b": "kept"}
    assert len([*find_stores([root])]) == 3
    assert actions(prune([root], quota_bytes=2 * size), root) == {"c": "deleted", "a": "kept", "b": "kept"}
    assert not Path(root, "c").exists()
    last = prune([root], quota_bytes=0)
    assert actions(last, root) == {"a": "deleted", "b": "deleted"}
    assert last.is_within_quota
    assert [*Path(root).iterdir()] == []


def test_pinned_leased_and_lately_read_stores_stay(root: str) -> None:
    pin(f"{root}/a", is_pinned=True)
    used(f"{root}/b", 1)
    with held(Objects(f"{root}/c"), "collect"):
        done = prune([root], quota_bytes=0)
    assert actions(done, root) == {"a": "skipped", "b": "skipped", "c": "skipped"}
    assert not done.is_within_quota
    assert done.remaining_bytes > 0
    told = {one.url[-1]: one.reason for one in done.stores}
    assert "pinned" in told["a"]
    assert "within the last 24 h" in told["b"]
    assert "collect" in told["c"]
    for name in "abc":
        assert Store.open(f"{root}/{name}").verify(deep=True) == []
    assert actions(prune([root], quota_bytes=0, grace_s=0.0), root) == {"a": "skipped", "b": "deleted", "c": "deleted"}


def test_expired_stores_go_without_a_quota_and_partial_ones_only_then(root: str, sample: Maker) -> None:
    partial = f"{root}/partial"
    one = sample(facts={"model": "p"})
    one.write(one.open(partial), [0])
    expire(f"{root}/a", after_s=0)
    expire(f"{root}/b", after_s=HOUR)
    assert actions(prune([root]), root) == {"a": "deleted", "b": "kept", "c": "kept", "partial": "kept"}
    assert actions(prune([root], quota_bytes=0), root) == {"b": "deleted", "c": "deleted", "partial": "kept"}
    expire(partial, after_s=0)
    assert actions(prune([root]), root) == {"partial": "deleted"}


def test_nothing_but_stores_is_ever_deleted(root: str, tmp_path: Path) -> None:
    Objects(f"{root}/foreign").write("zarr.json", b'{"zarr_format": 3, "node_type": "group"}')
    Objects(f"{root}/foreign").write("c/0", b"precious")
    damaged = Objects(f"{root}/b")
    damaged.write("zarr.json", damaged.read("zarr.json").replace(b"bfloat16", b"bfloat17"))
    notes = ["notes.txt", "tokens/table.json", "activations/README", "plots/zarr.json"]
    for key in notes:
        Objects(f"{root}/c").write(key, b"mine")
    before = {path: path.read_bytes() for path in Path(root, "b").rglob("*") if path.is_file()}
    for name in "ac":
        expire(f"{root}/{name}", after_s=0)
    done = prune([root], quota_bytes=0)
    assert actions(done, root) == {"a": "deleted", "c": "deleted"}
    assert "4 files that are not the store's" in next(one.reason for one in done.stores if one.url.endswith("c"))
    assert sorted(Objects(f"{root}/c").list()) == sorted(notes)
    assert Objects(f"{root}/foreign").read("c/0") == b"precious"
    assert {path: path.read_bytes() for path in before} == before
    for url in (f"{root}/foreign", f"{root}/b", f"{root}/nothing"):
        with pytest.raises(HeadworksError):
            delete_store(url, reason="by mistake")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("layout", ["zarr", "arrow"])
def test_a_deletion_killed_anywhere_is_recognised_and_finished(
    tmp_path: Path, sample: Maker, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every call to the storage; whole, or never to be read or written again, and gone at the next prune."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    url, calls, states = str(tmp_path / "stores" / "store"), 0, set()
    one = sample(layout=layout, num_rows=20, chunk_rows=4, shard_rows=16, widths={"a": 2})
    one.write_all(str(tmp_path / "original"))
    while True:
        shutil.copytree(tmp_path / "original", url, dirs_exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            turns = Turns(0, {"prune": calls})
            turns.watch(patch)
            outcome = turns.run({"prune": lambda: delete_store(url, reason="test")})["prune"]
        if outcome is None:
            break
        assert isinstance(outcome, Killed)
        for lease in Objects(url).list("leases/"):
            Objects(url).delete(lease)  # of the dead process; it would end by itself in ten minutes
        found = [*find_stores([str(tmp_path / "stores")])]
        if not found:
            assert Objects(url).list() == [], "lost sight of"
            calls += 1
            continue
        states.add(found[0].state)
        if found[0].state == "complete":
            one.require_equal(Store.open(url))
            delete_store(url, reason="test")
        else:
            assert found[0].state == "deleting"
            with pytest.raises(BusyError, match="being deleted"):
                one.open(url)
            with pytest.raises(BusyError, match="being deleted"):
                pin(url, is_pinned=True)
            assert actions(prune([url]), str(tmp_path)) == {"stores/store": "deleted"}
        assert not Path(url).exists()
        calls += 1
    assert states == {"complete", "deleting"}
    assert calls > 20
    with pytest.raises((MissingError, IncompleteError)):
        Store.open(url)


@pytest.mark.parametrize("seed", range(40))
def test_a_pin_at_the_same_moment_holds_or_fails(
    tmp_path: Path, sample: Maker, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    url = str(tmp_path / "store")
    one = sample(num_rows=8, widths={"a": 2})
    one.write_all(url)
    with pytest.MonkeyPatch.context() as patch:
        turns = Turns(seed)
        turns.watch(patch)
        outcomes = turns.run(
            {"pin": lambda: pin(url, is_pinned=True), "prune": lambda: delete_store(url, reason="test")}
        )
    if outcomes["pin"] is None:
        assert isinstance(outcomes["prune"], BusyError)
        assert read_retention(Objects(url)).is_pinned
        one.require_equal(Store.open(url))
    else:
        assert isinstance(outcomes["pin"], HeadworksError)
        assert outcomes["prune"] is not None or Objects(url).list() == []
