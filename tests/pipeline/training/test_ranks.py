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
from stepping import KINDS

from pipeline.training import engine
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.world import SingleWorld
from schemas.train import TrainSpec

MakeSpec = Callable[..., TrainSpec]

# Trains the first job to its end and dies at step 20 of the second: one start of the processes serves both tests.
RANK = """
import os, sys
import torch, torch.distributed as dist
from pipeline.training.engine import train
from pipeline.training.world import TorchWorld
from schemas.train import TrainSpec
whole, killed = map(TrainSpec.model_validate_json, sys.argv[1:3])
rank, size = map(int, sys.argv[4:6])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=size)
train(whole, TorchWorld())
assert train(whole, TorchWorld())["reused"]
def report(record):
    if record["step"] == 20:
        os._exit(9)
train(killed, TorchWorld(), report=report)
"""


def start_ranks(whole: TrainSpec, killed: TrainSpec, size: int, meeting: Path) -> list[int]:
    """Exit codes of the ranks."""
    arguments = [sys.executable, "-c", RANK, whole.model_dump_json(), killed.model_dump_json(), str(meeting)]
    ranks = [
        subprocess.Popen([*arguments, str(rank), str(size)], cwd=Path(__file__).parents[3]) for rank in range(size)
    ]
    return [rank.wait(timeout=200) for rank in ranks]


def require_same(ours: TrainSpec, theirs: TrainSpec) -> None:
    """Final weights, dead counters and logged figures agree up to the order of float additions."""
    states = [dict(Checkpoints(spec.output).read_state(42, "sae")) for spec in (ours, theirs)]
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


@pytest.mark.slow
def test_two_ranks_are_one_and_a_killed_run_goes_on_with_one(make_spec: MakeSpec, tmp_path: Path) -> None:
    alone, shared, moved = make_spec("alone"), make_spec("shared"), make_spec("moved")
    engine.train(alone, SingleWorld())
    assert start_ranks(shared, moved, 2, tmp_path / "meeting") == [9, 9]
    require_same(shared, alone)

    assert Checkpoints(moved.output).steps() == [7, 14]
    engine.train(moved, SingleWorld())
    require_same(moved, alone)


@pytest.mark.long
def test_four_ranks_are_one_for_every_kind(make_spec: MakeSpec, tmp_path: Path) -> None:
    dictionaries = [
        {"name": name, "sources": ["resid"], "num_latents": 48, "activation": activation, "learning_rate": 1e-3}
        for name, activation in KINDS.items()
    ]
    outputs = ("alone", "shared", "moved")
    alone, shared, moved = (make_spec(o, dictionaries=dictionaries, checkpoint_every_steps=15) for o in outputs)
    engine.train(alone, SingleWorld())
    assert start_ranks(shared, moved, 4, tmp_path / "meeting") == [9] * 4
    assert Checkpoints(moved.output).steps() == [15]
    engine.train(moved, SingleWorld())
    for theirs in (shared, moved):
        logs = [(Path(spec.output) / "metrics.jsonl").read_text().splitlines() for spec in (alone, theirs)]
        for one, other in zip(*(map(json.loads, log) for log in logs), strict=True):
            for name, metrics in one["dictionaries"].items():
                assert metrics == pytest.approx(other["dictionaries"][name], rel=1e-3, abs=1e-5), (one["step"], name)
