"""Two ranks of a gloo group are one rank but for the order of float additions, and a killed group goes on with one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_model import model_spec

from pipeline.pretraining.engine import pretrain
from pipeline.pretraining.prepare import prepare
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.world import SingleWorld
from schemas.train_model import TrainModelSpec

# Trains the first job to its end and dies at step 20 of the second: one start of the processes serves both tests.
RANK = """
import os, sys
import torch, torch.distributed as dist
from pipeline.pretraining.engine import pretrain
from pipeline.pretraining.prepare import prepare
from pipeline.training.world import TorchWorld
from schemas.train_model import TrainModelSpec
whole, killed = map(TrainModelSpec.model_validate_json, sys.argv[1:3])
rank, size = map(int, sys.argv[4:6])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=size)
pretrain(whole, prepare(whole), TorchWorld())
def report(record):
    if record["step"] == 20:
        os._exit(9)
pretrain(killed, prepare(killed), TorchWorld(), report=report)
"""


def start_ranks(whole: TrainModelSpec, killed: TrainModelSpec, size: int, meeting: Path) -> list[int]:
    arguments = [sys.executable, "-c", RANK, whole.model_dump_json(), killed.model_dump_json(), str(meeting)]
    ranks = [
        subprocess.Popen([*arguments, str(rank), str(size)], cwd=Path(__file__).parents[3]) for rank in range(size)
    ]
    return [rank.wait(timeout=200) for rank in ranks]


def require_same(ours: TrainModelSpec, theirs: TrainModelSpec) -> None:
    logs = [Path(spec.output, "metrics.jsonl").read_text().splitlines() for spec in (ours, theirs)]
    for one, other in zip(*(map(json.loads, log) for log in logs), strict=True):
        for record in (one, other):
            del record["tokens_per_s"]
        assert one == pytest.approx(other, rel=1e-3), one["step"]


@pytest.mark.slow
def test_two_ranks_are_one_and_a_killed_run_goes_on_with_one(tmp_path: Path) -> None:
    # 5 contexts a batch: the ranks' shares differ.
    alone, shared, moved = (
        model_spec(str(tmp_path / name), batch_tokens=80, snapshots=[0, 20]) for name in ("alone", "shared", "moved")
    )
    for spec in (alone, shared, moved):
        prepare(spec)
    pretrain(alone, prepare(alone), SingleWorld())
    assert start_ranks(shared, moved, 2, tmp_path / "meeting") == [9, 9]
    require_same(shared, alone)
    assert Checkpoints(moved.output).steps() == [7, 14]
    pretrain(moved, prepare(moved), SingleWorld())
    require_same(moved, alone)
    assert Path(alone.output, "snapshots/step0/model.safetensors").read_bytes() == (
        Path(shared.output, "snapshots/step0/model.safetensors").read_bytes()
    )
