"""A whole pipeline from its spec to its summary, a second run that computes nothing, and refusals before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.collect import CollectSpec
from schemas.errors import MissingError, SpecError
from schemas.evaluate import EvaluateSpec
from schemas.pipeline import JOB_ADAPTER, AnyJob, PipelineSpec
from schemas.train import TrainSpec
from workers.events import summary_place
from workers.run import require_hook_points, run_job, summarised

SOURCE, TARGET = "blocks.1.hook_mlp_in", "blocks.0.hook_resid_post"


def pipeline(model: Path, corpus: Path, output: str) -> dict[str, Any]:
    """Relative outputs, so that the test shows where they end."""
    topk = {"kind": "topk", "k": 4, "aux_k": 8, "dead_after_tokens": 2000}
    return {
        "kind": "pipeline",
        "name": "tiny",
        "output": output,
        "jobs": [
            {
                "kind": "collect",
                "model": {"path": str(model), "dtype": "float32", "device": "cpu"},
                "tokens": {
                    "corpus": {"format": "text", "urls": [f"{corpus}/*.txt"]},
                    "packing": {"context_length": 24},
                    "held_out_fraction": 0.3,
                    "part_size": "1KiB",
                },
                "hook_points": [TARGET, SOURCE],
                "storage": {"chunk_rows": 32, "shard_rows": 256},
                "workers": {"num_workers": 2},
                "output": f"{output}/store",
            },
            {
                "kind": "train",
                "store": "${collect}",
                "dictionaries": [
                    {"name": "sae", "sources": [SOURCE], "num_latents": 64, "activation": topk},
                    {"name": "skip", "sources": [SOURCE], "targets": [TARGET], "num_latents": 64,
                     "activation": topk, "skip": True},
                ],
                "batch_rows": 128,
                "num_epochs": 4,
                "output": f"{output}/dictionaries",
            },
            {
                "kind": "evaluate",
                "store": "${collect}",
                "dictionaries": "${train}",
                "max_rows": 512,
                "cross_entropy_tokens": 128,
                "report": {"num_features": 3, "rows": 512},
                "output": output,
            },
        ],
    }  # fmt: skip


@pytest.mark.ray
def test_a_pipeline_runs_and_runs_again(
    ray_cluster: object, model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = JOB_ADAPTER.validate_python(pipeline(model, corpus, "runs/tiny"))
    summary = run_job(job)
    output = tmp_path / "runs/tiny"
    assert json.loads((output / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["status"] == "succeeded"
    assert {"tokens", "tokens_per_s", "bytes"} <= set(summary["collection"])
    assert summary["collection"]["tokens"] > 1000
    assert set(summary["dictionaries"]) == {"sae", "skip"}
    for figures in summary["dictionaries"].values():
        assert {"fvu", "l0", "dead_share", "ce_recovered", "training"} <= set(figures)
    seconds = dict(summary["seconds"])
    total = seconds.pop("total")
    assert set(seconds) == {"collect", "train", "evaluate"}
    assert sum(seconds.values()) <= total  # one after the other, and Ray's start
    for made in ("store/manifest.json", "dictionaries/sae/dictionary.safetensors", "report.html", "evaluation.json"):
        assert (output / made).is_file(), made

    again = run_job(job)
    assert all(part["reused"] for part in again["jobs"].values())
    assert again["collection"]["tokens_per_s"] == summary["collection"]["tokens_per_s"] > 0
    for name, figures in summary["dictionaries"].items():
        assert again["dictionaries"][name]["fvu"] == figures["fvu"]


def spec(data: dict[str, Any]) -> list[Any]:
    job = JOB_ADAPTER.validate_python(data)
    assert isinstance(job, PipelineSpec)
    return list(job.resolved())


def test_hook_points_are_checked_before_any_work(tmp_path: Path) -> None:
    data = pipeline(tmp_path, tmp_path, str(tmp_path / "out"))
    require_hook_points(spec(data))
    data["jobs"][1]["dictionaries"][0]["sources"] = ["blocks.1.hook_mlp_inn"]
    with pytest.raises(SpecError, match=r"did you mean 'blocks\.1\.hook_mlp_in'"):
        require_hook_points(spec(data))
    with pytest.raises(SpecError):
        run_job(JOB_ADAPTER.validate_python(data))
    assert not (tmp_path / "out").exists()


def test_training_on_a_store_that_is_not_there(tmp_path: Path) -> None:
    job = pipeline(tmp_path, tmp_path, "out")["jobs"][1] | {"store": str(tmp_path / "nothing")}
    with pytest.raises(MissingError, match="nothing"):
        run_job(JOB_ADAPTER.validate_python(job))


@pytest.mark.ray
def test_a_failed_job_leaves_a_summary_that_says_so(
    ray_cluster: object, model: Path, corpus: Path, tmp_path: Path
) -> None:
    data = pipeline(model, corpus, str(tmp_path / "out"))
    data["jobs"] = data["jobs"][:1]
    data["jobs"][0]["tokens"]["corpus"]["urls"] = [f"{corpus}/*.md"]
    with pytest.raises(MissingError, match="matches no file"):
        run_job(JOB_ADAPTER.validate_python(data))
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["status"] == "failed"
    assert "MissingError" in summary["error"]
    assert "*.md" in summary["error"]


def job(kind: str, **facts: Any) -> AnyJob:
    dictionary = {"name": "d", "sources": ["h"], "num_latents": 64}
    required: dict[str, dict[str, Any]] = {
        "collect": {
            "model": {"path": "m"}, "hook_points": ["h"], "output": "runs/store",
            "tokens": {"corpus": {"format": "text", "urls": ["a"]}},
        },
        "train": {"store": "runs/store", "dictionaries": [dictionary], "output": "runs/d"},
        "evaluate": {"store": "runs/store", "dictionaries": "runs/d", "output": "runs/e"},
    }  # fmt: skip
    return JOB_ADAPTER.validate_python({"kind": kind, **required[kind], **facts})


def test_summaries_lie_in_the_output_but_beside_a_store() -> None:
    assert summary_place(job("train", output="runs/d/")) == ("runs/d", "summary.json")
    assert summary_place(job("collect", output="s3://bucket/store")) == ("s3://bucket", "store.summary.json")


def test_two_dictionaries_of_one_name_are_told_apart() -> None:
    first, second = job("train", name="a", output="runs/a"), job("train", name="b", output="runs/b")
    checked = job("evaluate", dictionaries="runs/b")
    assert isinstance(first, TrainSpec)
    assert isinstance(second, TrainSpec)
    assert isinstance(checked, EvaluateSpec)
    results: dict[str, Any] = {
        "a": (first, {"dictionaries": {"d": {"fvu": 0.5}}}),
        "b": (second, {"dictionaries": {"d": {"fvu": 0.4}}, "reused": True}),
        "e": (checked, {"dictionaries": {"d": {"fvu": 0.3, "l0": 4.0}}}),
    }
    summary = summarised(first, results, {"a": 1.0, "b": 2.0, "e": 0.5})
    assert summary["dictionaries"] == {
        "a/d": {"training": {"fvu": 0.5}},
        "b/d": {"training": {"fvu": 0.4}, "fvu": 0.3, "l0": 4.0},
    }
    assert summary["jobs"]["b"] == {"kind": "train", "output": "runs/b", "reused": True}
    assert summary["collection"] == {}


def test_the_first_collection_is_the_summary_s() -> None:
    collect = job("collect")
    assert isinstance(collect, CollectSpec)
    assert summarised(collect, {"c": (collect, {"tokens": 5})}, {"c": 1.0})["collection"] == {"tokens": 5}
