"""Training while collecting, on a real Ray: the same dictionaries however rows come, and both ends end together."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.order.live import blocks_ahead
from pipeline.planning.stages import stages
from pipeline.store.reader import Store
from schemas.errors import HeadworksError, HookPointError, ResourceError, SpecError
from schemas.pipeline import JOB_ADAPTER, PipelineSpec
from workers.progress import Progress
from workers.run import require_hook_points, run_job

SOURCE, TARGET = "blocks.1.hook_mlp_in", "blocks.0.hook_resid_post"


@pytest.fixture
def make_job(model: Path, corpus: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A pipeline of a collection and a training, with its outputs below a folder of that name."""

    def make(name: str, feed: str, *, ranks: int = 1, **fields: Any) -> dict[str, Any]:
        output = str(tmp_path / name)
        topk = {"kind": "topk", "k": 4, "aux_k": 8, "dead_after_tokens": 2000}
        collect = {
            "kind": "collect",
            "model": {"path": str(model), "dtype": "float32", "device": "cpu"},
            "tokens": {
                "corpus": {"format": "text", "urls": [f"{corpus}/*.txt"]},
                "packing": {"context_length": 24},
                "held_out_fraction": 0.2,
                "part_size": "1KiB",
                "output": str(tmp_path / "tokens"),
            },
            "hook_points": [TARGET, SOURCE],
            "batch_tokens": 240,
            "storage": {"chunk_rows": 32, "shard_rows": 128},
            "workers": {"num_workers": 1, "cpus_per_worker": 0.5},
            "output": f"{output}/store",
        }
        train = {
            "kind": "train",
            "feed": feed,
            "store": "${collect}",
            "dictionaries": [
                {"name": "sae", "sources": [SOURCE], "num_latents": 64, "activation": topk},
                {"name": "skip", "sources": [SOURCE], "targets": [TARGET], "num_latents": 64, "activation": topk,
                 "skip": True},
            ],
            "batch_rows": 48,
            "order": {"window_chunks": 8},
            "checkpoint_every_steps": 5,
            "log_every_steps": 1,
            "trackers": [],
            "workers": {"num_workers": ranks, "cpus_per_worker": 0.5},
            "output": f"{output}/dictionaries",
        }  # fmt: skip
        return {"kind": "pipeline", "name": name, "output": output, "jobs": [collect, train | fields]}

    return make


def run(data: dict[str, Any], progress: Progress | None = None) -> dict[str, Any]:
    return run_job(JOB_ADAPTER.validate_python(data), progress=progress)


def weights(data: dict[str, Any]) -> dict[str, bytes]:
    return {
        path.parent.name: path.read_bytes()
        for path in Path(data["output"]).glob("dictionaries/*/dictionary.safetensors")
    }


def lines(data: dict[str, Any]) -> list[dict[str, Any]]:
    path = Path(data["output"], "dictionaries", "metrics.jsonl")
    text = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in text if line.endswith("}")]


def processes(name: str) -> list[psutil.Process]:
    """Ray's processes of actors of a class, children of the Ray that this process started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def require_gone(name: str) -> None:
    """Within a while: Ray ends processes by and by."""
    deadline_s = time.monotonic() + 20
    while processes(name):
        assert time.monotonic() < deadline_s, f"{name} is still there"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.ray
def test_a_live_feed_writes_no_store_and_trains(ray_cluster: object, make_job: Callable[..., dict[str, Any]]) -> None:
    live = make_job("live", "live")
    shown = io.StringIO()
    summary = run(live, Progress(shown, interval_s=0.5))
    assert summary["status"] == "succeeded"
    assert not Path(live["output"], "store").exists()
    assert summary["collection"]["tokens_computed"] >= summary["collection"]["tokens"] > 1000
    assert set(summary["dictionaries"]) == {"sae", "skip"}
    logged = lines(live)
    assert [line["step"] for line in logged] == list(range(1, len(logged) + 1))
    assert all(line["stalled_s"] >= 0 for line in logged)
    assert "collect: activations" in shown.getvalue()
    assert "train: " in shown.getvalue()

    again = run(live)
    assert all(part["reused"] for part in again["jobs"].values())
    assert again["collection"]["tokens_computed"] == 0


@pytest.mark.ray
@pytest.mark.slow
def test_every_feed_gives_the_same_dictionaries(ray_cluster: object, make_job: Callable[..., dict[str, Any]]) -> None:
    live, follow, tee = (make_job(feed, feed) for feed in ("live", "follow", "tee"))
    for data in (live, follow, tee):
        assert run(data)["status"] == "succeeded"
    assert len(weights(live)) == 2
    assert weights(live) == weights(follow) == weights(tee)
    assert [line["dictionaries"] for line in lines(live)] == [line["dictionaries"] for line in lines(follow)]
    for data in (follow, tee):
        store = Store.open(f"{data['output']}/store")
        assert not store.verify(deep=True)


@pytest.mark.ray
@pytest.mark.long
def test_a_second_epoch_comes_from_the_store(ray_cluster: object, make_job: Callable[..., dict[str, Any]]) -> None:
    tee, follow = make_job("tee", "tee", num_epochs=2), make_job("follow", "follow", num_epochs=2)
    steps = run(tee)["dictionaries"]
    assert steps
    run(follow)
    assert weights(tee) == weights(follow)


@pytest.mark.ray
@pytest.mark.slow
def test_deaths_change_no_byte(ray_cluster: object, make_job: Callable[..., dict[str, Any]]) -> None:
    """A forward process and then a rank are killed; two ranks, so that the group starts anew together."""
    # Small steps, so that there is time to hit: blocks are made three units ahead, a window is 32 steps.
    calm, hit = (make_job(name, "live", ranks=2, batch_rows=8) for name in ("calm", "hit"))
    run(calm)
    killed: list[str] = []

    def kill(name: str, step: int) -> None:
        while len(lines(hit)) < step:
            time.sleep(0.02)
        if found := processes(name):
            os.kill(found[-1].pid, signal.SIGKILL)
            killed.append(name)

    def kill_both() -> None:
        kill("LiveForward", 3)
        kill("RayTrainWorker", 40)

    thread = threading.Thread(target=kill_both, daemon=True)
    thread.start()
    shown = io.StringIO()
    summary = run(hit, Progress(shown))
    thread.join(timeout=10)
    assert killed == ["LiveForward", "RayTrainWorker"]
    assert "attempt 1 ended" in shown.getvalue()
    assert summary["collection"]["worker_deaths"] == 1
    assert weights(hit) == weights(calm)
    assert [line["step"] for line in lines(hit)] == [line["step"] for line in lines(calm)]


@pytest.mark.ray
@pytest.mark.slow
def test_a_collection_that_fails_ends_the_training(
    ray_cluster: object, make_job: Callable[..., dict[str, Any]]
) -> None:
    data = make_job("broken", "live")
    data["jobs"][0]["hook_points"] = [TARGET, SOURCE, "blocks.7.hook_mlp_in"]
    with pytest.raises(HookPointError, match=r"blocks\.7"):
        run(data)
    summary = json.loads(Path(data["output"], "summary.json").read_text())
    assert summary["status"] == "failed"
    require_gone("LiveForward")
    require_gone("RayTrainWorker")


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_that_fails_ends_the_collection(
    ray_cluster: object, make_job: Callable[..., dict[str, Any]]
) -> None:
    # More rows than one epoch of a live feed has, which is known only once they are counted.
    data = make_job("short", "live", num_tokens=10**6)
    with pytest.raises(SpecError, match="one epoch of"):
        run(data)
    require_gone("LiveForward")
    follow = make_job("follow", "follow")
    follow["jobs"][1]["dictionaries"][0]["learning_rate"] = 1e30
    with pytest.raises(HeadworksError, match="finite"):
        run(follow)
    require_gone("ray::Collector")


def staged(data: dict[str, Any]) -> list[Any]:
    job = JOB_ADAPTER.validate_python(data)
    assert isinstance(job, PipelineSpec)
    require_hook_points(job.resolved())
    return [[one.name for one in stage.jobs] for stage in stages(job.resolved())]


def test_stages(make_job: Callable[..., dict[str, Any]]) -> None:
    assert staged(make_job("a", "stored")) == [["collect"], ["train"]]
    data = make_job("a", "tee")
    evaluate = {"kind": "evaluate", "store": "${collect}", "dictionaries": "${train}", "output": "x"}
    other = data["jobs"][0] | {"name": "other", "output": "y"}
    data["jobs"] = [data["jobs"][0], other, data["jobs"][1], evaluate]
    assert staged(data) == [["collect", "train"], ["other"], ["evaluate"]]
    data["jobs"][2] |= {"feed": "live"}
    with pytest.raises(SpecError, match="evaluate reads the store of collect, but feed live"):
        staged(data)


def test_feeds_that_cannot_be(make_job: Callable[..., dict[str, Any]]) -> None:
    data = make_job("a", "live")
    data["jobs"].append(data["jobs"][1] | {"name": "second", "output": "z"})
    with pytest.raises(SpecError, match="one training live"):
        staged(data)
    with pytest.raises(SpecError, match="needs one in the same pipeline"):
        run(make_job("a", "live")["jobs"][1] | {"store": "elsewhere"})
    data = make_job("a", "live")
    data["jobs"][1]["dictionaries"][0]["sources"] = ["blocks.1.hook_mlp_inn"]
    with pytest.raises(SpecError, match="did you mean"):
        staged(data)


@pytest.mark.ray
def test_both_must_fit(ray_cluster: object, make_job: Callable[..., dict[str, Any]]) -> None:
    data = make_job("a", "live", ranks=4)
    data["jobs"][0]["workers"] = {"cpus_per_worker": 0.5}
    with pytest.raises(ResourceError, match="do not fit"):
        run(data)


def test_blocks_in_memory(make_job: Callable[..., dict[str, Any]]) -> None:
    job = JOB_ADAPTER.validate_python(make_job("a", "live"))
    assert isinstance(job, PipelineSpec)
    training: Any = job.jobs[1]
    # A window of 8 chunks of 32 rows is two units of 128; one more for each of three processes.
    assert blocks_ahead(training, chunk_rows=32, shard_rows=128, num_workers=3) == 5
