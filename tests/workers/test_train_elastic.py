"""Elastic training: as many ranks as there is room for, fewer when a node dies, and the results of a fixed number."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from kill_cluster import Nodes
from kill_job import MARK
from pydantic import ValidationError
from small_training import train_spec, write_store

from pipeline.training import engine
from pipeline.training.world import SingleWorld
from schemas.errors import ResourceError
from schemas.train import TrainSpec
from workers.cluster import Cluster
from workers.progress import Progress
from workers.rank_group import require_room
from workers.train import group_of, run_train

MakeSpec = Callable[..., TrainSpec]


@pytest.fixture
def make_spec(tmp_path: Path) -> MakeSpec:
    url = write_store(str(tmp_path / "store"))
    return lambda output="out", **fields: train_spec(url, str(tmp_path / output), **fields)


@pytest.mark.long
@pytest.mark.ray
def test_a_small_cluster_trains_with_fewer_ranks(ray_cluster: object, make_spec: MakeSpec) -> None:
    fixed, elastic = make_spec("fixed"), make_spec("elastic", workers={"num_workers": 4, "min_workers": 1})
    assert run_train(fixed, progress=Progress())["num_ranks"] == 2
    assert run_train(elastic, progress=Progress())["num_ranks"] == 2
    weights = Path("sae", "dictionary.safetensors")
    assert Path(elastic.output, weights).read_bytes() == Path(fixed.output, weights).read_bytes()


@pytest.mark.slow
@pytest.mark.ray
def test_a_node_that_dies_leaves_fewer_ranks(make_spec: MakeSpec) -> None:
    alone, elastic = (
        make_spec(name, num_epochs=30, workers={"num_workers": 2, "min_workers": 1}) for name in ("alone", "elastic")
    )
    engine.train(alone, SingleWorld())
    nodes = Nodes.start()
    try:
        nodes.tell("add")
        summary = run_and_lose_a_node(nodes, elastic)
    finally:
        nodes.close()
    assert (summary["restarts"], summary["num_ranks"]) == (1, 1)
    found, expected = (
        safetensors.torch.load_file(f"{spec.output}/sae/dictionary.safetensors") for spec in (elastic, alone)
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


def run_and_lose_a_node(nodes: Nodes, spec: TrainSpec) -> dict[str, Any]:
    """The summary of a run whose second node is killed after its first checkpoints."""
    command = [sys.executable, str(Path(__file__).with_name("elastic_run.py")), nodes.address, spec.model_dump_json()]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not list(Path(spec.output).glob("checkpoints/*/checkpoint.json")):
        assert time.monotonic() < deadline
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.01)
    nodes.tell("remove")
    out, errors = driver.communicate(timeout=280)
    assert driver.returncode == 0, errors
    assert "2 ranks, 2 at most" in errors
    return json.loads(next(line for line in out.splitlines() if line.startswith(MARK)).removeprefix(MARK))


def test_the_least_number_must_fit_and_make_sense(make_spec: MakeSpec) -> None:
    laptop = Cluster(address="", num_cpus=2, num_gpus=0, is_own=True)
    require_room(group_of(make_spec(workers={"num_workers": 8, "min_workers": 2})), laptop)
    with pytest.raises(ResourceError, match=r"workers.min_workers \(3\) ranks need 3 CPU cores"):
        require_room(group_of(make_spec(workers={"num_workers": 8, "min_workers": 3})), laptop)
    for workers, message in (
        ({"num_workers": 2, "min_workers": 3}, r"min_workers \(3\) is more than num_workers \(2\)"),
        ({"num_workers": 4, "min_workers": 2, "latent_shards": 2}, "set min_workers to 0, or latent_shards to 1"),
    ):
        with pytest.raises(ValidationError, match=message):
            make_spec(workers=workers)
