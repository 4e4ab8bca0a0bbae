"""Bridges, and lists of many numbers, with two small decoders with random weights."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.networks import build_network
from pipeline.pretraining.prepare import prepare
from pipeline.pretraining.snapshots import save_model
from pipeline.tokens.tokenizer import load_tokenizer
from schemas.network import NetworkSpec
from schemas.train_model import TrainModelSpec

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / f"{name}.py")))


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture
def table(tmp_path: Path) -> str:
    spec = TrainModelSpec.model_validate(
        {
            "tokens": {
                "corpus": {
                    "format": "grammar",
                    "grammar": {"kind": "python_templates", "templates": ["bracket_counting"]},
                    "num_documents": 160,
                },
                "packing": {"context_length": 32},
                "held_out_fraction": 0.4,
            },
            "tokenizer": {"kind": "byte_pairs", "vocab_size": 256, "alphabet": "seen"},
            "network": {"context_length": 32},
            "steps": 1,
            "batch_tokens": 32,
            "snapshots": [0],
            "output": str(tmp_path / "training"),
        }
    )
    return prepare(spec).table_url


@pytest.fixture
def folders(table: str, tmp_path: Path) -> list[str]:
    """A dense model and a wider one."""
    tokenizer, found = tmp_path / "training" / "tokenizer", []
    for name, width in (("dense", 8), ("sparse", 12)):
        spec = NetworkSpec(layers=2, d_model=width, heads=2, context_length=32, positions="learned")
        network = build_network(spec, load_tokenizer(str(tokenizer)).vocab_size, 0)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(5)
        found.append(str(tmp_path / name))
        save_model(network, tokenizer, Path(found[-1]))
    return found


def test_lists_end_where_the_learned_positions_do(folders: list[str]) -> None:
    found = example("bracket_dilution").diluted(folders[1], pairs=4)
    assert [one["numbers"] for one in found] == [4, 5, 6, 8, 10, 12]
    assert set(found[0]) == {"numbers", "flat", "nested", "early", "paired"}


@pytest.mark.slow
def test_bridges_are_trained_and_held_against_what_they_were(folders: list[str], table: str) -> None:
    bridges = example("bridges")
    found = bridges.bridged(*map(bridges.load, folders), table, steps=12, batch=4)
    assert sorted(found["course"]) == [0, 3, 6, 12]
    assert found["course"][12]["nmse"] < found["course"][0]["nmse"]
    assert found["kl_of_models"] > 0
    assert found["tokens"] == 12 * 4 * 32
