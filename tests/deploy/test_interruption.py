"""Ctrl-C in the middle of a real run: exit code 130, a word on what is kept, and a rerun that goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

HEADWORKS = Path(sys.executable).with_name("headworks")


def write_spec(tmp_path: Path) -> Path:
    """A collection of a second and a training of many short steps."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline" / "collection"))
    from small_job import HOOKS, save_corpus, save_model, small_spec

    model, corpus = save_model(tmp_path / "model"), save_corpus(tmp_path / "corpus", num_files=10)
    collect = small_spec(model, corpus, Path("store"), name="collect").model_dump(mode="json")
    sae = {"name": "sae", "sources": [HOOKS[0]], "num_latents": 64, "activation": {"kind": "topk", "k": 4}}
    train = {
        "kind": "train", "store": "${collect}", "output": "dictionaries", "batch_rows": 128, "num_epochs": 150,
        "checkpoint_every_steps": 20, "log_every_steps": 1, "trackers": [], "workers": {"num_workers": 2},
        "dictionaries": [sae],
    }  # fmt: skip
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"kind": "pipeline", "output": "out", "jobs": [collect, train]}))
    return path


def steps(folder: Path) -> list[int]:
    path = folder / "dictionaries" / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def start(spec: Path, **environment: str) -> subprocess.Popen[str]:
    """In a process group of its own, as a terminal would."""
    return subprocess.Popen(
        [HEADWORKS, "run", spec.name], cwd=spec.parent, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.ray
def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    first = start(spec)
    while max(steps(tmp_path), default=0) < 30:
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    assert "The same command goes on from there" in err
    assert "Traceback" not in out + err
    summary: dict[str, Any] = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "stopped"
    reached = max(steps(tmp_path))

    second = start(spec)
    out, err = second.communicate(timeout=240)
    assert second.returncode == 0, err
    assert "nothing to compute" in err
    logged = steps(tmp_path)
    assert logged == list(range(1, max(logged) + 1))
    assert max(logged) > reached
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["jobs"]["collect"]["reused"]
