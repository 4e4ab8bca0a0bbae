"""``headworks store ls|info|verify`` of a group of stores."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.cli import main

# The small job of the collection tests; test modules have no packages, so the path finds it.
sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline" / "collection"))

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group of two snapshots that are complete and one that was not begun."""
    from small_job import built_table, save_corpus, save_model, small_spec

    from pipeline.collection.prepare import prepare
    from pipeline.collection.snapshots import group_of, snapshot_jobs
    from pipeline.collection.unit import UnitCollector, collect_units
    from pipeline.store.group import join_group
    from pipeline.store.objects import Objects

    folder = tmp_path_factory.mktemp("built")
    snapshots = {"step0": {}, "step64": {"dtype": "bfloat16"}, "step512": {"dtype": "float16"}}
    spec = small_spec(
        save_model(folder / "model"), save_corpus(folder / "corpus"), folder / "group",
        snapshots=snapshots, tokens={"max_tokens": 64},
    )  # fmt: skip
    table = built_table(spec)
    jobs = snapshot_jobs(spec)
    join_group(Objects(spec.output), group_of(spec, jobs, table.fingerprint))
    for name in ("step0", "step64"):
        for one in prepare(jobs[name], table):
            collector = UnitCollector.open(one.of)
            list(collect_units(collector, one.units))
            collector.writer.finish()
    return folder


@pytest.fixture
def group(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "group", tmp_path / "group"))


@pytest.fixture
def headworks(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process: ``(exit code, stdout)``."""

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().out

    return run


def test_ls_says_what_belongs_together(group: Path, headworks: Run) -> None:
    code, out = headworks("store", "ls", str(group.parent), "--json")
    assert code == 0
    assert [(Path(one["url"]).name, one["group"]) for one in json.loads(out)] == [
        ("step0", str(group)), ("step64", str(group)),
    ]  # fmt: skip
    _, out = headworks("store", "ls", str(group))
    assert "a group of 3 stores of one token table: step0 (step 0), step64 (step 64), step512 (step 512)" in out
    assert "not complete, or not listed: step512" in out


def test_info_shows_every_store(group: Path, headworks: Run) -> None:
    code, out = headworks("store", "info", str(group), "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["steps"] == {"step0": 0, "step64": 64, "step512": 512}
    assert facts["stores"]["step512"] is None
    assert facts["stores"]["step0"]["num_rows"] == facts["stores"]["step64"]["num_rows"] == 64
    _, out = headworks("store", "info", str(group))
    assert "not begun" in out
    assert "step64/blocks.0.hook_resid_post [32], mean norm" in out


def test_verify_looks_at_every_store(group: Path, headworks: Run) -> None:
    code, out = headworks("store", "verify", str(group))
    assert code == 1
    assert f"{group}/step512: expected a store, got none" in out
    document = json.loads((group / "group.json").read_text())
    whole = [member for member in document["members"] if member["name"] != "step512"]
    rewrite(group, members=whole)
    code, out = headworks("store", "verify", str(group), "--json")
    assert code == 0, out
    assert all(store["problems"] == [] for store in json.loads(out)["stores"].values())
    shard = next(path for path in (group / "step64").rglob("*") if path.is_file() and "/c/" in str(path))
    shard.write_bytes(shard.read_bytes()[:-1])
    code, out = headworks("store", "verify", str(group), "--quick")
    assert code == 1
    assert str(group / "step0") in out
    assert str(shard.relative_to(group / "step64")) in out
    rewrite(group, members=whole[:1], table_fingerprint="other")
    code, out = headworks("store", "verify", str(group))
    assert code == 1
    assert "expected the token table other" in out


def test_one_store_is_asked_for_where_one_is_needed(
    group: Path, headworks: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["store", "pin", str(group)])
    assert ended.value.code == 2
    assert "is a group of stores" in capsys.readouterr().err


def rewrite(group: Path, **changes: object) -> None:
    """The document with other fields and a seal that fits."""
    from pipeline.store.documents import sealed
    from schemas.group import GroupRecord

    facts = json.loads((group / "group.json").read_text())
    del facts["crc32c"]
    (group / "group.json").write_text(json.dumps(sealed(GroupRecord.model_validate(facts | changes))))
