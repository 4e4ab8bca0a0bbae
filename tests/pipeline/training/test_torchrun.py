"""Training by ``torchrun``, without Ray: real groups of real processes, one of which is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch

from pipeline.training import engine
from pipeline.training.torchrun import Ranks
from pipeline.training.world import SingleWorld
from schemas.errors import ResourceError, SpecError
from schemas.train import TrainSpec

MakeSpec = Callable[..., TrainSpec]
ROOT = Path(__file__).parents[3]
# Says of itself that it imports no Ray: a finder in front of all others refuses to.
NO_RAY = """
import sys
class Refusing:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "ray":
            raise AssertionError("training by torchrun imports ray")
sys.meta_path.insert(0, Refusing())
"""


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts ``torchrun`` on a spec."""
    (tmp_path / "sitecustomize.py").write_text(NO_RAY)

    def start(spec: TrainSpec, *options: str, num_ranks: int = 2) -> subprocess.Popen[str]:
        path = Path(spec.output).with_suffix(".json")
        path.write_text(spec.model_dump_json())
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*command, *options, "-m", "headworks", "train", str(path)],
            cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


def weights(spec: TrainSpec) -> dict[str, dict[str, torch.Tensor]]:
    return {
        one.name: safetensors.torch.load_file(f"{spec.output}/{one.name}/dictionary.safetensors")
        for one in spec.dictionaries
    }


def kill_a_rank(group: subprocess.Popen[str], output: str, checkpoint: str) -> None:
    """SIGKILL for the last rank, once there is a checkpoint."""
    deadline = time.monotonic() + 200
    while not Path(output, "checkpoints", checkpoint, "checkpoint.json").exists():
        assert time.monotonic() < deadline
        assert group.poll() is None, group.communicate()
        time.sleep(0.01)
    ranks = [process for process in psutil.Process(group.pid).children() if "headworks" in process.cmdline()]
    os.kill(max(ranks, key=lambda process: process.pid).pid, signal.SIGKILL)


@pytest.mark.slow
def test_ranks_are_one_and_a_killed_rank_is_made_good(
    make_spec: MakeSpec, torchrun: Callable[..., subprocess.Popen[str]]
) -> None:
    alone, hit, sharded = (make_spec(name, num_epochs=4) for name in ("alone", "hit", "sharded"))
    engine.train(alone, SingleWorld())
    group = torchrun(hit, "--max-restarts=1")
    kill_a_rank(group, hit.output, "000000021")
    out, errors = group.communicate(timeout=250)
    assert group.returncode == 0, errors
    assert out.count("dictionary sae: FVU") == 1
    workers = {"num_workers": 2, "latent_shards": 2}
    sharded = sharded.model_copy(update={"workers": sharded.workers.model_copy(update=workers)})
    group = torchrun(sharded)
    _, errors = group.communicate(timeout=250)
    assert group.returncode == 0, errors
    for theirs in (hit, sharded):
        for name, tensors in weights(alone).items():
            for key, tensor in tensors.items():
                torch.testing.assert_close(
                    weights(theirs)[name][key], tensor, rtol=1e-3, atol=1e-4, msg=f"{name} {key}"
                )


@pytest.mark.slow
def test_a_mistake_is_told_once(make_spec: MakeSpec, torchrun: Callable[..., subprocess.Popen[str]]) -> None:
    spec = make_spec("wrong", dictionaries=[{"name": "d", "sources": ["nowhere"], "num_latents": 48}])
    group = torchrun(spec)
    _, errors = group.communicate(timeout=250)
    assert group.returncode == 1
    assert len(re.findall("^headworks: .*'nowhere'", errors, re.MULTILINE)) == 1
    assert errors.count("headworks:") == 1
    assert re.search(r"exitcode *: 2", errors)


def test_what_needs_ray_or_more_ranks_is_refused(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def refused(**fields: Any) -> str:
        with pytest.raises((SpecError, ResourceError)) as raised:
            Ranks().train(make_spec(**fields))
        return str(raised.value)

    assert "feed follow trains while a collection runs, which needs Ray" in refused(feed="follow")
    shards = {"num_workers": 2, "latent_shards": 2}
    assert "latent_shards is 2, and this is one process" in refused(num_epochs=1, workers=shards)
    if not torch.cuda.is_available():
        assert "lower --nproc-per-node" in refused(workers={"use_gpu": True})
