"""Snapshots of a collect job: how they are found and named, what is refused before anything runs."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_job import save_model, small_spec
from transformers import AutoTokenizer, LlamaForCausalLM

from pipeline.collection.prepare import table_url
from pipeline.collection.snapshots import group_of, natural, require_snapshots, snapshot_jobs
from pipeline.spec_file import validated
from pipeline.spec_paths import anchored
from schemas.collect import CollectSpec
from schemas.errors import MismatchError, MissingError, ModelError, SpecError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "base")


def job(base: Path, output: Path, **changes: Any) -> CollectSpec:
    return small_spec(base, output.parent / "corpus", output, **changes)


def checkpoint(base: Path, folder: Path, *, with_tokenizer: bool = False) -> Path:
    """The weights of ``base`` moved a little."""
    model = LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    model.save_pretrained(folder)
    if with_tokenizer:
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@given(st.lists(st.integers(0, 10**12), min_size=1, unique=True), st.randoms(use_true_random=False))
def test_numbers_in_names_are_sorted_as_numbers(steps: list[int], chance: random.Random) -> None:
    names = [f"run-2/step{step}/final" for step in steps]
    chance.shuffle(names)
    assert sorted(names, key=natural) == [f"run-2/step{step}/final" for step in sorted(steps)]


def test_a_pattern_names_folders_by_its_wildcards(base: Path, tmp_path: Path) -> None:
    for name in ("step8", "step64", "step512", "stray"):
        (tmp_path / "runs" / name / "final").mkdir(parents=True)
    (tmp_path / "runs" / "step9").write_text("a file")
    spec = job(base, tmp_path / "group", snapshot_folders="runs/step*/final")
    moved = anchored(spec, tmp_path)
    assert isinstance(moved, CollectSpec)
    jobs = snapshot_jobs(moved)
    assert [*jobs] == ["step8", "step64", "step512"]
    assert {one.model.path for one in jobs.values()} == {f"{tmp_path}/runs/{name}/final" for name in jobs}
    assert [member.step for member in group_of(moved, jobs, "table").members] == [8, 64, 512]
    two = snapshot_jobs(job(base, tmp_path / "group", snapshot_folders=f"{tmp_path}/r*s/s*/final"))
    assert [*two] == ["runs-step8", "runs-step64", "runs-step512", "runs-stray"]
    with pytest.raises(MissingError, match="matches no folder"):
        snapshot_jobs(job(base, tmp_path / "group", snapshot_folders=f"{tmp_path}/steps/*"))
    with pytest.raises(SpecError, match="no wildcard"):
        snapshot_jobs(job(base, tmp_path / "group", snapshot_folders=f"{tmp_path}/runs"))
    (tmp_path / "runs" / "step 1").mkdir()
    with pytest.raises(SpecError, match="'step 1'"):
        snapshot_jobs(job(base, tmp_path / "group", snapshot_folders=f"{tmp_path}/runs/*"))


def test_every_snapshot_is_a_job_of_its_own_over_one_table(base: Path, tmp_path: Path) -> None:
    spec = job(
        base, tmp_path / "group",
        snapshots={"store": {"path": "late", "step": 7}, "base": {}, "b": {"dtype": "bfloat16", "revision": "step3"}},
    )  # fmt: skip
    (tmp_path / "late").mkdir()
    moved = anchored(spec, tmp_path)
    assert isinstance(moved, CollectSpec)
    jobs = snapshot_jobs(moved)
    assert [*jobs] == ["store", "base", "b"]
    assert [one.model.path for one in jobs.values()] == [str(tmp_path / "late"), str(base), str(base)]
    assert [one.model.dtype for one in jobs.values()] == ["float32", "float32", "bfloat16"]
    assert [one.output for one in jobs.values()] == [f"{tmp_path}/group/{name}" for name in jobs]
    assert {table_url(one) for one in jobs.values()} == {f"{tmp_path}/tokens"} == {table_url(spec)}
    # A checkpoint without tokenizer files leaves word of where its text can be decoded.
    assert [one.tokens.tokenizer for one in jobs.values()] == [str(base), "model", "model"]
    assert not any(one.is_group for one in jobs.values())
    for one in jobs.values():
        assert CollectSpec.model_validate(one.model_dump(mode="json")) == one
    assert [member.step for member in group_of(moved, jobs, "table").members] == [7, None, 3]


def test_specs_that_contradict_themselves(base: Path, tmp_path: Path) -> None:
    facts = job(base, tmp_path / "group").model_dump(mode="json")
    for changes, message in (
        ({"snapshots": {"a": {}}, "snapshot_folders": "x/*"}, "not both"),
        ({"snapshots": {"group.json": {}}}, "own document"),
        ({"snapshots": {"a/b": {}}}, r"snapshots\.a/b"),
        ({"snapshots": {"a": {"pth": "x"}}}, r"snapshots\.a\.pth: unknown field; did you mean 'path'"),
    ):
        with pytest.raises(SpecError, match=message):
            validated(facts | changes, where="job")


def test_a_snapshot_that_cannot_be_collected_is_named_before_anything_runs(base: Path, tmp_path: Path) -> None:
    good = checkpoint(base, tmp_path / "good")
    spec = job(base, tmp_path / "group", snapshots={"good": {"path": str(good)}, "equal": {"path": str(base)}})
    require_snapshots(spec, snapshot_jobs(spec))
    spec = job(base, tmp_path / "group", snapshots={"good": {"path": str(good)}, "gone": {"path": f"{tmp_path}/gone"}})
    with pytest.raises(MissingError, match="snapshot 'gone'"):
        require_snapshots(spec, snapshot_jobs(spec))
    (tmp_path / "empty").mkdir()
    spec = job(base, tmp_path / "group", snapshots={"empty": {"path": f"{tmp_path}/empty"}})
    with pytest.raises(ModelError, match=r"snapshot 'empty'.*no weights"):
        require_snapshots(spec, snapshot_jobs(spec))


def test_another_tokenizer_is_refused_and_named(base: Path, tmp_path: Path) -> None:
    other = checkpoint(base, tmp_path / "other", with_tokenizer=True)
    spec = job(base, tmp_path / "group", snapshots={"other": {"path": str(other)}})
    require_snapshots(spec, snapshot_jobs(spec))
    moved = tmp_path / "moved"  # tokenizers are kept by path for the process
    shutil.copytree(other, moved)
    tokenizer = AutoTokenizer.from_pretrained(moved)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(moved)
    spec = job(base, tmp_path / "group", snapshots={"other": {"path": str(other)}, "moved": {"path": str(moved)}})
    with pytest.raises(MismatchError, match=r"snapshot 'moved'.*another tokenizer"):
        require_snapshots(spec, snapshot_jobs(spec))
    named = job(base, tmp_path / "group", tokens={"tokenizer": str(base)}, snapshots={"moved": {"path": str(moved)}})
    require_snapshots(named, snapshot_jobs(named))
