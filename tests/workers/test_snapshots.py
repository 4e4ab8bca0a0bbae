"""Snapshots of one model on Ray: one group, aligned rows, nothing computed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_job import HOOKS, small_spec
from transformers import LlamaForCausalLM

import headworks
from pipeline.spec_file import validated
from pipeline.store.joined import JoinedStore
from pipeline.store.reader import Store
from schemas.collect import CollectSpec
from schemas.errors import MissingError, SpecError
from schemas.pipeline import JOB_ADAPTER, PipelineSpec
from workers.collect import run_collect
from workers.run import require_hook_points
from workers.snapshots import run_snapshots

FIRST, SECOND = HOOKS
ONE = {"num_workers": 1}


@pytest.fixture(scope="module")
def checkpoints(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four networks that differ in every weight, without tokenizers of their own."""
    folder = tmp_path_factory.mktemp("checkpoints")
    network = LlamaForCausalLM.from_pretrained(model)
    for step in (0, 8, 64, 512):
        torch.manual_seed(step)
        with torch.no_grad():
            for weights in network.parameters():
                weights.add_(torch.randn_like(weights) * 0.05)
        network.save_pretrained(folder / f"step{step}")
    return folder


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_group_is_collected_and_added_to(model: Path, corpus: Path, checkpoints: Path, tmp_path: Path) -> None:
    named = {f"step{step}": {"path": str(checkpoints / f"step{step}")} for step in (0, 8)}

    def spec(**changes: Any) -> CollectSpec:
        return small_spec(model, corpus, tmp_path / "group", tokens={"max_tokens": 128}, workers=ONE, **changes)

    summary = run_snapshots(spec(snapshots=named))
    assert [*summary["snapshots"]] == ["step0", "step8"]
    assert [one["step"] for one in summary["snapshots"].values()] == [0, 8]
    assert (summary["tokens"], summary["units"], summary["units_reused"]) == (128, 4, 0)
    group = headworks.open_store(str(tmp_path / "group"))
    assert isinstance(group, JoinedStore)
    assert group.num_rows == 128
    assert group.table_fingerprint == summary["table_fingerprint"]
    assert [*group.hook_points] == [f"{name}/{hook}" for name in named for hook in HOOKS]
    one, other = (group.read_values(f"{name}/{FIRST}", 0, 128) for name in named)
    assert not np.allclose(one, other, atol=0.1)
    tokens = [store.tokens() for store in group.stores.values()]
    assert tokens[0] == tokens[1]

    # A snapshot's store is that of a job over it alone, byte for byte.
    alone = small_spec(
        checkpoints / "step8", corpus, tmp_path / "alone", tokens={"max_tokens": 128, "tokenizer": str(model)}
    )
    run_collect(alone)
    for hook in HOOKS:
        expected = Store.open(str(tmp_path / "alone")).read_rows(hook, 0, 128)
        np.testing.assert_array_equal(group.read_rows(f"step8/{hook}", 0, 128), expected)

    again = run_snapshots(spec(snapshots=named))
    assert again["reused"]
    assert again["fingerprint"] == summary["fingerprint"]
    more = run_snapshots(spec(snapshots=named | {"late": {"path": str(checkpoints / "step512"), "step": 512}}))
    assert {name: figures["reused"] for name, figures in more["snapshots"].items()} == {
        "step0": True, "step8": True, "late": False,
    }  # fmt: skip
    assert more["tokens_computed"] == 128
    # A pattern finds two of them under the names that they have, and the fourth; "late" stays.
    found = run_snapshots(spec(snapshot_folders=f"{checkpoints}/step[068]*"))
    assert {name: figures["reused"] for name, figures in found["snapshots"].items()} == {
        "step0": True, "step8": True, "step64": False,
    }  # fmt: skip
    whole = headworks.open_store(str(tmp_path / "group"))
    assert isinstance(whole, JoinedStore)
    assert [*whole.stores] == ["step0", "step8", "step64", "late"]
    assert all(store.verify(deep=True) == [] for store in whole.stores.values())


def test_a_missing_snapshot_is_told_before_anything_is_written(model: Path, corpus: Path, tmp_path: Path) -> None:
    snapshots = {"there": {"path": str(model)}, "gone": {"path": str(tmp_path / "gone")}}
    with pytest.raises(MissingError, match="snapshot 'gone'"):
        run_snapshots(small_spec(model, corpus, tmp_path / "out" / "group", snapshots=snapshots))
    assert not (tmp_path / "out").exists()


def test_hook_points_of_a_group_are_checked_before_any_work(model: Path, corpus: Path, tmp_path: Path) -> None:
    collect = small_spec(model, corpus, tmp_path / "group", snapshots={"a": {}, "b": {"dtype": "bfloat16"}})

    topk = {"kind": "topk", "k": 2}

    def jobs(source: str) -> list[Any]:
        train = {
            "kind": "train", "store": "${collect}", "output": str(tmp_path / "trained"),
            "dictionaries": [{"name": "d", "sources": [source], "num_latents": 8, "activation": topk}],
        }  # fmt: skip
        facts = {"kind": "pipeline", "jobs": [collect.model_dump(mode="json"), train], "output": str(tmp_path)}
        job = JOB_ADAPTER.validate_python(facts)
        assert isinstance(job, PipelineSpec)
        return list(job.resolved())

    require_hook_points(jobs(f"b/{FIRST}"))
    with pytest.raises(SpecError, match=f"did you mean 'b/{FIRST}'"):
        require_hook_points(jobs(f"c/{FIRST}"))


def test_a_group_is_refused_where_one_store_is_needed(model: Path, corpus: Path, tmp_path: Path) -> None:
    collect = small_spec(model, corpus, tmp_path / "group", snapshots={"a": {}, "b": {"dtype": "bfloat16"}})
    dictionary = {"name": "d", "sources": [f"a/{FIRST}"], "num_latents": 8, "activation": {"kind": "topk", "k": 2}}
    train = {"kind": "train", "store": "${collect}", "dictionaries": [dictionary], "output": "trained"}
    for job, message in (
        ({"kind": "shuffle", "store": "${collect}", "output": "shuffled"}, "OUTPUT/SNAPSHOT"),
        (train | {"store": {"x": "${collect}", "y": "other"}}, "store.x refers to"),
        (train | {"feed": "live"}, "use feed: stored"),
    ):
        facts = {"kind": "pipeline", "jobs": [collect.model_dump(mode="json"), job], "output": str(tmp_path)}
        with pytest.raises(SpecError, match=message):
            validated(facts, where="job")
