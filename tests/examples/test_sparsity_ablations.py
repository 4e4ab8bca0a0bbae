"""What the runs of the sparsity ablations are compared by."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.networks import build_network
from pipeline.spec_file import load_job
from schemas.network import NetworkSpec

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(EXAMPLES)
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "sparsity_ablations.py")))


def test_a_neuron_is_cut_off_that_reads_or_writes_nothing(example: SimpleNamespace) -> None:
    network = build_network(NetworkSpec(layers=2, d_model=8, heads=2, d_mlp=10), 16, 0)
    weights = network.state_dict()
    assert example.cut_off(weights) == {"neurons_cut_off": 0, "channels_cut_off": 0, "tokens_cut_off": 0}
    with torch.no_grad():
        first, second = (block.mlp for block in network.model.blocks)
        first.up_proj.weight[3] = 0
        second.down_proj.weight[:, [3, 4]] = 0
        second.up_proj.weight[4] = 0
        attention = network.model.blocks[1].attn
        attention.q_proj.weight[5] = 0
        attention.k_proj.weight[5] = 0
        attention.o_proj.weight[:, 6] = 0
        network.lm_head.weight[2] = 0
    found = example.cut_off(weights)
    assert found["neurons_cut_off"] == pytest.approx(3 / 20)
    assert found["channels_cut_off"] == pytest.approx(2 / 32)
    assert found["tokens_cut_off"] == pytest.approx(1 / 16)


def test_each_run_differs_from_the_recipe_in_what_its_name_says() -> None:
    spec = load_job(EXAMPLES / "sparsity_ablations.yaml")
    recipe, *others = (job.model_dump(mode="json", exclude={"name", "output"}) for job in spec.jobs)
    changed = {job.name: _changed(recipe, other) for job, other in zip(spec.jobs[1:], others, strict=True)}
    assert changed == {
        "rate_low": {"optimiser.learning_rate"},
        "rate_high": {"optimiser.learning_rate"},
        "no_root": {"sparsity.learning_rate"},
        "no_root_rate_4": {"sparsity.learning_rate", "optimiser.learning_rate"},
        "no_clip": {"sparsity.gradient"},
        "normalise": {"sparsity.gradient"},
        "epsilon_1e-8": {"optimiser.epsilon"},
        "epsilon_0.1": {"optimiser.epsilon"},
        "no_survivors": {"sparsity.survivors"},
        "fixed_share": {"sparsity.anneal_stop"},
        "dense": {"sparsity", "optimiser.epsilon", "optimiser.learning_rate"},
        "recipe.1": {"seed"},
        "no_clip.1": {"sparsity.gradient", "seed"},
    }


def test_a_run_is_read_from_what_training_writes(example: SimpleNamespace, tmp_path: Path) -> None:
    lines = [
        {"step": 0, "learning_rate": 0.0, "held_out_loss": 5.0},
        {"step": 10, "learning_rate": 0.2, "gradient_norm": 3.0},
        {"step": 20, "learning_rate": 0.1, "gradient_norm": 1.0, "held_out_loss": 2.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    summary = {"steps": 20, "tokens": 640, "parameters": 100, "held_out_loss": 2.0, "seconds": 1.0}
    (tmp_path / "train_model.json").write_text(json.dumps({"summary": summary}))
    (tmp_path / "identity.json").write_text('{"seed": 7}')
    network = build_network(NetworkSpec(layers=1, d_model=8, heads=2, d_mlp=8), 16, 0)
    network.save_pretrained(tmp_path / "model")
    found = example.figures(tmp_path)
    assert found["held_out_losses"] == {0: 5.0, 20: 2.0}
    assert found["gradient_rms"] == {"median": pytest.approx(0.2), "max": pytest.approx(0.3)}
    assert (found["seed"], found["highest_rate"], found["nonzero_share"]) == (7, 0.2, 1.0)


def _changed(one: dict, other: dict, path: str = "") -> set[str]:
    found = set()
    for key, here in one.items():
        there = other[key]
        if isinstance(here, dict) and isinstance(there, dict):
            found |= _changed(here, there, f"{path}{key}.")
        elif here != there:
            found.add(path + key)
    return found
