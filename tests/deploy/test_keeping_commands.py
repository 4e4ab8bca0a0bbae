"""``headworks store ls``, ``pin``, ``unpin``, ``expire`` and ``prune``: tables, JSON, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headworks as face
from pipeline.store.rows import TokenRows
from pipeline.store.writer import StoreWriter
from schemas.fingerprint import fingerprint
from schemas.store import PassRecord, StoreRecord

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runs(tmp_path: Path) -> str:
    """Two stores, and a Zarr group of another program."""
    for name in ("a", "b"):
        identity: dict[str, Any] = {"model": {"path": f"model-{name}", "weights": "0123456789abcdef"}}
        record = StoreRecord(
            fingerprint=fingerprint(identity), identity=identity, table_fingerprint="table", dtype="bfloat16",
            chunk_rows=8, shard_rows=32, codec="none", table_url="", specials={},
            spec={"tokens": {"corpus": {"path": "org/text", "config": "default", "split": "train"}}}, versions={},
        )  # fmt: skip
        hooks = {f"blocks.{at}.hook_resid_post": 4 for at in range(5)}
        passed = PassRecord(hook_points=hooks, batch_tokens=8)
        writer = StoreWriter.open(str(tmp_path / "runs" / name / "store"), record, passed, num_rows=32)
        rows = np.arange(32)
        tokens = TokenRows(row=rows, token_id=rows, document_id=rows, position=rows % 16, held_out=rows < 0)
        words = {hook: np.zeros((32, 4), "<u2") for hook in hooks}
        writer.write_unit(0, words, tokens, worker="test", attempt=0, seconds={})
        writer.finish()
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    return str(tmp_path / "runs")


def test_ls_shows_what_there_is(headworks: Run, runs: str) -> None:
    code, out, _ = headworks("store", "ls", runs)
    assert code == 0
    header, first, second, other = out.splitlines()
    assert header.split()[:3] == ["url", "state", "model"]
    assert f"{runs}/a/store" in first
    assert "model-a@0123456789ab" in first
    assert "org/text:default:train" in first
    assert "blocks.2.hook_resid_post, and 2 more" in first
    assert "model-b" in second
    assert other.startswith(f"{runs}/other: foreign: ")
    found = json.loads(headworks("store", "ls", runs, "--json", "--model", "model-b")[1])
    assert sorted((one["url"], one["state"]) for one in found) == [
        (f"{runs}/b/store", "complete"), (f"{runs}/other", "foreign"),
    ]  # fmt: skip
    found = [one for one in found if one["state"] == "complete"]
    assert found[0]["retention"]["is_pinned"] is False
    assert found[0]["num_rows"] == 32
    assert [entry.url for entry in face.find_stores(runs, model="model-a") if entry.is_store] == [f"{runs}/a/store"]
    code, _, err = headworks("store", "ls", f"{runs}/typo")
    assert code == 2
    assert "there is nothing at" in err


def test_pins_and_expiry_decide_what_is_pruned(headworks: Run, runs: str) -> None:
    a, b = f"{runs}/a/store", f"{runs}/b/store"
    assert "pinned, never pruned" in headworks("store", "pin", a)[1]
    assert json.loads(headworks("store", "expire", b, "--after", "0s", "--json")[1])["expires"] > 0
    code, out, _ = headworks("store", "prune", runs, "--dry-run")
    assert code == 0
    assert f"would delete {b}: expired" in out
    assert "not pinned; expires: never" in headworks("store", "expire", b, "--after", "never")[1]
    code, out, _ = headworks("store", "prune", runs, "--quota", "1KiB")
    assert code == 1
    assert f"deleted {b}" in out
    assert f"leaves {a}" in out
    assert "more than the quota" in out
    assert not Path(b).exists()
    assert "not pinned" in headworks("store", "unpin", a)[1]
    code, out, _ = headworks("store", "prune", runs, "--quota", "1KiB", "--json")
    assert code == 0
    assert [(one["url"], one["action"]) for one in json.loads(out)["stores"]] == [(a, "deleted")]
    assert Path(runs, "other", "zarr.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [(("expire", "{a}", "--after", "soon"), "for example '30d'"), (("prune", "{a}", "--quota", "much"), "'512MiB'"),
     (("pin", "{a}/nothing"), "no activation store")],
)  # fmt: skip
def test_mistakes_are_said_once(headworks: Run, runs: str, words: tuple[str, ...], message: str) -> None:
    code, _, err = headworks("store", *(word.format(a=f"{runs}/a/store") for word in words))
    assert code == 2
    assert message in err
    assert "Traceback" not in err
