"""A model that is trained here, its checkpoints collected as snapshots, and a crosscoder over them."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import headworks
from pipeline.dictionaries.folder import load_dictionary
from pipeline.spec_file import load_job
from pipeline.store.joined import JoinedStore
from pipeline.training import engine
from pipeline.training.world import SingleWorld
from schemas.collect import CollectSpec
from schemas.pipeline import PipelineSpec
from schemas.train import TrainSpec
from workers.run import run_job

EXAMPLES = Path(__file__).parents[2] / "examples"
POINT = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "train_checkpoints.py")))


def jobs_of(folder: Path, *changes: str) -> PipelineSpec:
    """The example with its outputs below ``folder``."""
    job = load_job(EXAMPLES / "snapshots.yaml", changes)
    assert isinstance(job, PipelineSpec)
    text = job.model_dump_json().replace("runs/snapshots", str(folder))
    return PipelineSpec.model_validate_json(text)


@pytest.mark.slow
def test_a_crosscoder_over_the_checkpoints_of_a_training(
    example: SimpleNamespace, tmp_path: Path, collect_here: Callable[[CollectSpec], None]
) -> None:
    losses = example.train(tmp_path / "checkpoints", (0, 8, 48), batch=8)
    assert np.mean(losses[-4:]) < losses[0] - 1
    names = ["step0", "step8", "step48"]
    points = [f"{name}/{POINT}" for name in names]
    dictionary: dict[str, Any] = {
        "name": "crosscoder", "sources": points, "num_latents": 96, "learning_rate": 5e-3,
        "activation": {"kind": "topk", "k": 8, "aux_k": 16, "dead_after_tokens": 4000},
    }  # fmt: skip
    collect, train = jobs_of(
        tmp_path, "jobs[collect].tokens.max_tokens=6144", "jobs[collect].storage.shard_rows=2048",
        f"jobs[train].dictionaries={[dictionary]}", "jobs[train].batch_rows=256", "jobs[train].trackers=[]",
        "jobs[train].num_epochs=3",
    ).resolved()[:2]  # fmt: skip
    assert isinstance(collect, CollectSpec)
    assert isinstance(train, TrainSpec)
    collect_here(collect)
    group = headworks.open_store(collect.output)
    assert isinstance(group, JoinedStore)
    assert [*group.hook_points] == points
    assert group.num_rows == 6144
    tokens = [store.tokens() for store in group.stores.values()]
    assert all(one == tokens[0] for one in tokens)
    # Row r of every store is what that checkpoint makes of token r of the table.
    from transformers import GPT2LMHeadModel

    context = tokens[0].slice(0, 64)
    for name in names:
        model = GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoints" / name)
        with torch.no_grad():
            ids = torch.from_numpy(context.token_id.astype(np.int64))[None]
            hidden = model.transformer(ids, output_hidden_states=True).hidden_states
        # The last of them is behind the final norm; the residual stream before that is what the hook point means.
        assert len(hidden) == 3
        normed = model.transformer.ln_f(torch.from_numpy(group.read_values(f"{name}/{POINT}", 0, 64)))
        assert torch.nn.functional.cosine_similarity(normed, hidden[-1][0], dim=1).min() > 0.999

    summary = engine.train(train, SingleWorld())
    assert summary["tokens"] > 0
    made = load_dictionary(f"{train.output}/crosscoder")
    assert made.record is not None
    assert [*made.record.d_target] == points
    # How much of each snapshot a latent writes: in the course of training that has changed.
    first, last = (made.split_targets(made.decoder.detach())[f"{name}/{POINT}"] for name in ("step0", "step48"))
    shares = [part.norm(dim=1) * made.scales[f"{name}/{POINT}"] for name, part in (("step0", first), ("step48", last))]
    alive = shares[0] + shares[1] > 0.1
    assert alive.sum() > 20
    assert ((shares[1] - shares[0]).abs() / (shares[0] + shares[1]))[alive].mean() > 0.05
    assert torch.nn.functional.cosine_similarity(first[alive], last[alive], dim=1).mean() < 0.95


@pytest.mark.ray
@pytest.mark.long
def test_the_example_runs(example: SimpleNamespace, tmp_path: Path) -> None:
    example.train(tmp_path / "checkpoints", example.STEPS[:2], batch=4)
    sources = [f"step{step}/{POINT}" for step in example.STEPS[:2]]
    spec = {"name": "crosscoder", "sources": sources, "num_latents": 64, "activation": {"kind": "topk", "k": 4}}
    job = jobs_of(
        tmp_path, "jobs[collect].tokens.max_tokens=8192", "jobs[collect].storage.shard_rows=4096",
        "jobs[train].num_epochs=1", f"jobs[train].dictionaries={[spec]}", "jobs[train].workers.cpus_per_worker=1",
        "jobs[evaluate].rows=all", "jobs[evaluate].max_rows=1024", "jobs[evaluate].report.num_features=2",
        "jobs[evaluate].report.rows=1024",
    )  # fmt: skip
    summary = run_job(job)
    assert [*summary["collection"]["snapshots"]] == ["step0", "step16"]
    assert summary["collection"]["units"] == 4
    figures = summary["dictionaries"]["crosscoder"]
    assert [*figures["fvu_of_target"]] == sources
    assert figures["fvu"] > 0
    # A third checkpoint: it alone is collected, and the training that does not name it is the one that is there.
    example.train(tmp_path / "checkpoints", (32,), batch=4)
    more = run_job(job)
    assert {name: one["reused"] for name, one in more["collection"]["snapshots"].items()} == {
        "step0": True, "step16": True, "step32": False,
    }  # fmt: skip
    assert more["jobs"]["train"]["reused"]
    assert more["jobs"]["evaluate"]["reused"]
