"""A dense and a weight-sparse network: the spec asks both alike, the script refuses to compare unequal losses."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from pipeline.spec_file import read_yaml
from schemas.circuit import CircuitSpec
from schemas.collect import CollectSpec
from schemas.pipeline import PipelineSpec
from schemas.train_model import TrainModelSpec

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_both_networks_are_trained_on_one_text_and_searched_alike() -> None:
    jobs = read_yaml(EXAMPLES / "weight_sparse.yaml", PipelineSpec, "pipeline").jobs
    trained = {job.name: job for job in jobs if isinstance(job, TrainModelSpec)}
    assert trained["dense"].tokens == trained["sparse"].tokens
    assert trained["dense"].tokenizer == trained["sparse"].tokenizer
    assert (trained["dense"].sparsity is None, trained["sparse"].sparsity is None) == (True, False)
    stores = [job for job in jobs if isinstance(job, CollectSpec)]
    assert stores[0].hook_points == stores[1].hook_points
    assert len(stores[0].hook_points) == 8 * trained["dense"].network.layers
    searches = [job.model_dump(exclude={"name", "model", "store", "output"}) for job in _circuits(jobs)]
    assert searches[0] == searches[1]


def _circuits(jobs: Any) -> list[CircuitSpec]:
    return [job for job in jobs if isinstance(job, CircuitSpec)]


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    return runpy.run_path(str(EXAMPLES / "weight_sparse.py"))["main"]


def _run(name: str, *, held_out_loss: float, edges: float) -> None:
    facts = {"parameters": 100, "steps": 2, "tokens": 64, "loss": 1.0, "held_out_loss": held_out_loss, "seconds": 1.0}
    found = {
        "status": "found", "nodes": 9, "edges_at_target": edges, "measured": {"loss": 0.1}, "intact": {"loss": 0.0},
        "without": {"loss": 0.7},
    }  # fmt: skip
    missed = {**found, "status": "missed", "edges_at_target": None}
    tasks = {"for_while": found, "var_swap": found if name == "dense" else missed}
    circuits = {"identity": {"spec": {}, "search": {}, "tokenizer": "x"}, "tasks": tasks}
    for file, content in (
        (f"{name}/train_model.json", {"summary": facts}),
        (f"{name}_circuits/circuits.json", circuits),
    ):
        path = Path("runs/weight_sparse", file)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))


def test_the_ratio_and_what_it_leaves_out_are_said(compare: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _run("dense", held_out_loss=1.01, edges=300)
    _run("sparse", held_out_loss=1.0, edges=40)
    compare([])
    said = capsys.readouterr().out
    assert "edges, dense by sparse: 7.50 (7.5 to 7.5 over 1 tasks); left out: {'var_swap': ['sparse']}" in said
    assert "missed" in said


def test_models_of_unequal_loss_are_not_compared(compare: Any) -> None:
    _run("dense", held_out_loss=1.03, edges=300)
    _run("sparse", held_out_loss=1.0, edges=40)
    with pytest.raises(SystemExit, match="more than two percent apart"):
        compare([])
