"""What the reader of the variants measures, and that all variants are trained on the same text and steps."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.spec_file import load_job
from schemas.pipeline import PipelineSpec
from schemas.train_model import TrainModelSpec

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "network_variants.py")))


def test_likeness_is_the_mean_cosine_of_all_pairs_but_those_with_the_first_token(example: SimpleNamespace) -> None:
    rows = torch.randn((3, 6, 5), generator=torch.Generator().manual_seed(0))
    pairs = [
        torch.nn.functional.cosine_similarity(context[i], context[j], dim=0)
        for context in rows
        for i in range(1, 6)
        for j in range(1, 6)
        if i != j
    ]
    assert example.likeness(rows) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)


def test_a_difference_is_clear_where_no_two_losses_are_in_the_wrong_order(example: SimpleNamespace) -> None:
    found = example.compared([3.0, 3.2, 3.1], [3.3, 3.5, 3.4])
    assert found["clear"]
    assert found["mean_difference"] == pytest.approx(-0.3)
    assert not example.compared([3.0, 3.2, 3.4], [3.3, 3.5, 3.4])["clear"]


def test_the_variants_differ_in_their_networks_alone(example: SimpleNamespace) -> None:
    job = load_job(EXAMPLES / "network_variants.yaml")
    assert isinstance(job, PipelineSpec)
    wanted = {f"{name}-{seed}" for name in example.VARIANTS for seed in range(example.SEEDS)}
    assert {each.name for each in job.jobs} == wanted
    own = {"name", "output", "network", "seed"}
    assert all(isinstance(each, TrainModelSpec) for each in job.jobs)
    assert len({each.model_dump_json(exclude=own) for each in job.jobs}) == 1
    assert len({each.output for each in job.jobs}) == len(job.jobs)
    for each in job.jobs:
        assert isinstance(each, TrainModelSpec)
        assert each.name.endswith(f"-{each.seed}")
        assert each.network.layers == example.LAYERS


def test_the_result_and_the_picture(example: SimpleNamespace, tmp_path: Path) -> None:
    curves = {
        "stream": [0.1, 0.2], "attention": [0.5], "untrained_stream": [0.0, 0.1], "untrained_attention": [0.4],
    }  # fmt: skip
    found = {name: [example.Trained(3.0 + step, curves) for step in (0.0, 0.1, 0.2)] for name in ("plain", "pid")}
    kept = example.result(found)["variants"]
    assert kept["plain"]["against_plain"] is None
    assert kept["pid"]["against_plain"]["mean_difference"] == 0
    assert kept["pid"]["likeness"]["stream"] == pytest.approx([0.1, 0.2])
    example.draw(found, tmp_path / "variants.svg")
    assert "</svg>" in (tmp_path / "variants.svg").read_text()
