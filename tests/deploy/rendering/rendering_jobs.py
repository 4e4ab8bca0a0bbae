"""Jobs and settings that the tests of rendered files share. Their memory is given, so that nothing is planned."""

from __future__ import annotations

from typing import Any

from pipeline.spec_file import validated
from schemas.pipeline import AnyJob
from schemas.rendering import RenderSettings

HOOK = "blocks.9.hook_resid_post"


def collect(**changes: Any) -> dict[str, Any]:
    workers = {"num_workers": 4, "cpus_per_worker": 2, **changes.pop("workers", {})}
    return {
        "kind": "collect",
        "name": "collect",
        "model": {"path": "Qwen/Qwen3-8B"},
        "tokens": {"corpus": {"format": "jsonl", "urls": ["s3://lab/text/*.jsonl"]}},
        "hook_points": [HOOK],
        "workers": workers,
        "output": "s3://lab/store",
        **changes,
    }


def train(**changes: Any) -> dict[str, Any]:
    workers = {"num_workers": 8, "cpus_per_worker": 4, **changes.pop("workers", {})}
    return {
        "kind": "train",
        "name": "train",
        "store": "s3://lab/store",
        "dictionaries": [
            {"name": "sae", "sources": [HOOK], "num_latents": 4096, "activation": {"kind": "topk", "k": 32}}
        ],
        "workers": workers,
        "output": "s3://lab/dictionaries",
        **changes,
    }


def evaluate(**changes: Any) -> dict[str, Any]:
    stores = {"store": "s3://lab/store", "dictionaries": "s3://lab/dictionaries", "output": "s3://lab/evaluation"}
    return {"kind": "evaluate", "name": "evaluate", **stores, **changes}


def job_of(*jobs: dict[str, Any], **changes: Any) -> AnyJob:
    """One job as it is, or a pipeline of several."""
    if len(jobs) == 1 and not changes:
        return validated(jobs[0], where="test")
    facts = {"kind": "pipeline", "name": "Quick.start", "output": "s3://lab/run", "jobs": list(jobs), **changes}
    return validated(facts, where="test")


def settings_of(**changes: Any) -> RenderSettings:
    return RenderSettings.model_validate(
        {"image": "registry.lab/headworks:0.1.0", "worker_memory": "16GiB", "grace": "20s", **changes}
    )


def on_gpus() -> AnyJob:
    """A pipeline whose collection and training take GPUs."""
    return job_of(
        collect(workers={"num_workers": 16, "gpus_per_worker": 1, "cpus_per_worker": 6}),
        train(workers={"use_gpu": True}),
        evaluate(),
        cluster={"object_store_memory": "1GiB"},
    )


def on_cpus_and_gpus() -> AnyJob:
    """A collection on GPUs, a shuffle and a training without."""
    shuffle = {"kind": "shuffle", "store": "s3://lab/store", "workers": {"num_workers": 6}, "output": "s3://lab/mixed"}
    return job_of(
        collect(workers={"gpus_per_worker": 0.5, "num_workers": 4}), shuffle, train(store="s3://lab/mixed"),
    )  # fmt: skip
