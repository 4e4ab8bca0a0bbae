"""Finding stores by listing: complete, partial, damaged and foreign ones, on every storage, and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

from pipeline.store import catalogue
from pipeline.store.catalogue import StoreEntry, find_stores
from pipeline.store.leases import held
from pipeline.store.objects import Objects
from pipeline.store.retention import note_use, pin
from schemas.errors import MissingError, SpecError

Maker = Callable[..., Any]


def by_name(root: str, **filters: str) -> dict[str, StoreEntry]:
    found = [*find_stores([root], **filters)]
    assert len({entry.url for entry in found}) == len(found)
    return {entry.url.removeprefix(Objects(root).url).strip("/"): entry for entry in found}


class CatalogueContract:
    """Subclasses give ``url``: an empty place on their storage."""

    @pytest.fixture
    def root(self, url: str, sample: Maker) -> str:
        sample().write_all(f"{url}/runs/one/store")
        other = sample(
            facts={"model": {"path": "tiny-b", "weights": "abcdef0123456789"}}, widths={"b.out": 4}, num_rows=64
        )
        other.write_all(f"{url}/deep/er/two")
        sample(facts={"model": "partial"}).open(f"{url}/runs/partial")
        Objects(f"{url}/runs/one/tokens").write("identity.json", b"{}")
        Objects(f"{url}/runs/one/tokens").write("tokenizer.json", b"{}")
        Objects(f"{url}/runs/one").write("summary.json", b"{}")
        return url

    def test_all_below_a_url_are_found(self, root: str, sample: Maker) -> None:
        found = by_name(root)
        assert {name: entry.state for name, entry in found.items()} == {
            "runs/one/store": "complete", "deep/er/two": "complete", "runs/partial": "partial",
        }  # fmt: skip
        one, two, partial = found["runs/one/store"], found["deep/er/two"], found["runs/partial"]
        record, manifest = sample().record, sample().write_all(f"{root}/runs/one/store")
        assert one.fingerprint == record.fingerprint
        assert (one.model, one.table_fingerprint) == ("tiny", record.table_fingerprint)
        assert (one.hook_points, one.num_rows, one.size_bytes) == (manifest.hook_points, 75, manifest.size_bytes)
        assert (one.dtype, one.layout, one.codec) == ("bfloat16", "zarr", "none")
        assert one.created_s is not None
        assert abs(one.created_s - time.time()) < 600
        assert two.model == "tiny-b@abcdef012345"
        assert (partial.num_rows, partial.size_bytes) == (75, None)
        assert set(partial.hook_points) == set(manifest.hook_points)

    def test_filters(self, root: str, sample: Maker) -> None:
        assert {*by_name(root, model="TINY-B")} == {"deep/er/two"}
        assert {*by_name(root, model="abcdef")} == {"deep/er/two"}
        assert {*by_name(root, hook_point="b.*")} == {"deep/er/two"}
        assert {*by_name(root, hook_point="blocks.0.hook_mlp_in")} == {"runs/one/store", "runs/partial"}
        assert {*by_name(root, fingerprint=sample().record.fingerprint[:9])} == {"runs/one/store"}
        assert {*by_name(root, corpus="ttt")} == {*by_name(root)}
        assert by_name(root, corpus="wikipedia") == {}

    def test_what_is_said_of_its_keeping(self, root: str) -> None:
        url = f"{root}/runs/one/store"
        pin(url, is_pinned=True)
        note_use(url, "train-a")
        with held(Objects(url), "collect-more"):
            entry = by_name(root)["runs/one/store"]
        assert entry.retention.is_pinned
        assert entry.last_used_s is not None
        assert [text.partition("-")[0] for text in entry.in_use_by] == ["collect"]
        assert by_name(root)["runs/one/store"].in_use_by == []

    def test_a_store_itself_and_a_store_twice(self, root: str) -> None:
        url = f"{root}/deep/er/two"
        assert [entry.url for entry in find_stores([url])] == [Objects(url).url]
        assert len([*find_stores([url, root, root])]) == 3

    def test_nothing_there_is_said(self, url: str) -> None:
        with pytest.raises(MissingError, match="nothing at"):
            [*find_stores([f"{url}/typo"])]

    def test_damaged_and_foreign_groups_are_named_and_stop_nothing(self, root: str) -> None:
        def spoil(url: str, key: str) -> None:
            data = Objects(url).read(key)
            Objects(url).write(key, data.replace(b'"partial', b'"parsial').replace(b'"num_rows":64', b'"num_rows":65'))

        spoil(f"{root}/deep/er/two", "manifest.json")
        spoil(f"{root}/runs/partial", "zarr.json")
        Objects(f"{root}/a/broken").write("zarr.json", b"{ not JSON")
        Objects(f"{root}/a/other").write("zarr.json", json.dumps({"zarr_format": 3, "node_type": "group"}).encode())
        Objects(f"{root}/a/array").write("zarr.json", json.dumps({"zarr_format": 3, "node_type": "array"}).encode())
        newer = json.loads(Objects(f"{root}/runs/one/store").read("zarr.json"))
        newer["attributes"]["headworks"]["format"] = 2
        Objects(f"{root}/a/newer").write("zarr.json", json.dumps(newer).encode())
        found = by_name(root, hook_point="nobody.has.this")
        assert {name: entry.state for name, entry in found.items()} == {
            "deep/er/two": "damaged", "runs/partial": "damaged", "a/broken": "damaged", "a/array": "foreign",
            "a/other": "foreign", "a/newer": "foreign",
        }  # fmt: skip
        assert "CRC-32C" in found["deep/er/two"].problem
        assert "upgrade Headworks" in found["a/newer"].problem


class TestLocal(CatalogueContract):
    @pytest.fixture
    def url(self, local_url: str) -> str:
        return local_url


class TestMemory(CatalogueContract):
    @pytest.fixture
    def url(self, memory_url: str) -> str:
        return memory_url


class TestS3(CatalogueContract):
    @pytest.fixture
    def url(self, s3_url: str) -> str:
        return s3_url


def test_neither_stores_nor_tables_nor_groups_of_others_are_listed_inside(
    tmp_path: Path, sample: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost is that of the folders above stores, however much the stores hold."""
    sample().write_all(str(tmp_path / "runs" / "store"))
    for part in range(30):
        Objects(str(tmp_path / "runs" / "tokens" / f"parts{part}")).write("0.parquet", b"x")
    Objects(str(tmp_path / "runs" / "tokens")).write("identity.json", b"{}")
    Objects(str(tmp_path / "runs" / "tokens")).write("tokenizer.json", b"{}")
    zarr.create_group(str(tmp_path / "climate")).create_group("inner")
    (tmp_path / ".cache" / "hidden").mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path)
    listed: list[str] = []
    children = Objects.children
    monkeypatch.setattr(Objects, "children", lambda self, folder="": listed.append(folder) or children(self, folder))
    found = by_name(str(tmp_path))
    assert {name: entry.state for name, entry in found.items()} == {"runs/store": "complete", "climate": "foreign"}
    assert sorted(listed) == ["", "climate", "runs", "runs/store", "runs/tokens"]
    monkeypatch.setattr(catalogue, "MAX_FOLDERS", 3)
    with pytest.raises(SpecError, match="nearer to the stores"):
        by_name(str(tmp_path))
