"""Several ranks are one rank but for the order of float additions; ranks are processes of a gloo group."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipeline.training import engine
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.world import SingleWorld
from schemas.train import TrainSpec

MakeSpec = Callable[..., TrainSpec]

RANK = """
import os, sys
import torch, torch.distributed as dist
from pipeline.training.engine import train
from pipeline.training.world import TorchWorld
from schemas.train import TrainSpec
spec, rank, size, stop = TrainSpec.model_validate_json(sys.argv[1]), *map(int, sys.argv[3:6])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=size)
def report(record):
    if stop and record["step"] >= stop:
        os._exit(9)
train(spec, TorchWorld(), report=report)
dist.destroy_process_group()
"""


def train_on(spec: TrainSpec, size: int, meeting: Path, *, stop: int = 0) -> list[int]:
    """Exit codes of the ranks."""
    arguments = [sys.executable, "-c", RANK, spec.model_dump_json(), str(meeting)]
    ranks = [
        subprocess.Popen([*arguments, str(rank), str(size), str(stop)], cwd=Path(__file__).parents[3])
        for rank in range(size)
    ]
    return [rank.wait(timeout=100) for rank in ranks]


def require_same(ours: TrainSpec, theirs: TrainSpec) -> None:
    """Final weights, dead counters and logged figures agree to float addition order."""
    states = [Checkpoints(spec.output).read_state(42, "sae") for spec in (ours, theirs)]
    assert torch.equal(states[0]["rows_since_fired"], states[1]["rows_since_fired"])
    for name in ("sae", "skip", "l1"):
        weights = [safetensors.torch.load_file(f"{s.output}/{name}/dictionary.safetensors") for s in (ours, theirs)]
        for key, value in weights[0].items():
            torch.testing.assert_close(value, weights[1][key], rtol=1e-3, atol=1e-3, msg=f"{name}.{key}")
    logs = [(Path(spec.output) / "metrics.jsonl").read_text().splitlines() for spec in (ours, theirs)]
    for one, other in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert one["step"] == other["step"]
        for name, metrics in one["dictionaries"].items():
            assert metrics == pytest.approx(other["dictionaries"][name], rel=1e-4, abs=1e-6), (one["step"], name)


def test_two_ranks_are_one(make_spec: MakeSpec, tmp_path: Path) -> None:
    alone, shared = make_spec("alone"), make_spec("shared")
    engine.train(alone, SingleWorld())
    assert train_on(shared, 2, tmp_path / "meeting") == [0, 0]
    require_same(shared, alone)


def test_a_run_goes_on_with_another_number_of_ranks(make_spec: MakeSpec, tmp_path: Path) -> None:
    alone, moved = make_spec("alone"), make_spec("moved")
    engine.train(alone, SingleWorld())
    assert train_on(moved, 2, tmp_path / "meeting", stop=20) == [9, 9]
    assert Checkpoints(moved.output).steps() == [7, 14]
    engine.train(moved, SingleWorld())
    require_same(moved, alone)
