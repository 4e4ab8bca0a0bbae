"""The whole example with two snapshots, without Ray."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipeline.evaluation.evaluate import evaluate
from pipeline.spec_file import load_job
from pipeline.training import engine
from pipeline.training.world import SingleWorld
from schemas.collect import CollectSpec
from schemas.evaluate import EvaluateSpec
from schemas.pipeline import PipelineSpec
from schemas.train import TrainSpec

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "concepts_over_training.py")))


@pytest.mark.slow
def test_what_is_told_of_two_snapshots(
    example: SimpleNamespace,
    tmp_path: Path,
    collect_here: Callable[[CollectSpec], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A model that has learned nothing is as far from unigrams as its loss is from their entropy."""
    example.checkpoints.train(tmp_path / "checkpoints", (0, 20), batch=8)
    changes = [
        "jobs[collect].tokens.max_tokens=4096", "jobs[collect].storage.shard_rows=2048",
        "jobs[train].batch_rows=256", "jobs[evaluate].max_rows=1024", "jobs[evaluate].report.num_features=2",
        "jobs[evaluate].report.rows=1024",
    ]  # fmt: skip
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(example.pipeline_of(tmp_path, (0, 20)).model_dump(mode="json")))
    job = load_job(tmp_path / "job.yaml", changes)
    assert isinstance(job, PipelineSpec)
    collect, train, evaluation = job.resolved()
    assert isinstance(collect, CollectSpec)
    assert isinstance(train, TrainSpec)
    assert isinstance(evaluation, EvaluateSpec)
    collect_here(collect)
    engine.train(train, SingleWorld())
    found = evaluate(evaluation)["snapshots"]
    unigram, bigram = found["entropy_unigram"], found["entropy_bigram"]
    assert bigram < unigram - 1
    start, later = found["snapshots"]
    assert start["kl_unigram"] == pytest.approx(start["loss"] - unigram, abs=0.3)
    assert later["loss"] < start["loss"] - 0.5
    assert later["kl_unigram"] < start["kl_unigram"]

    example.tell(tmp_path)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"entropy of the text: unigrams {unigram:.2f}, bigrams {bigram:.2f} nats a token"
    rows = [line.split() for line in told if line.startswith("step")]
    assert [row[:3] for row in rows] == [
        [one["name"], f"{one['loss']:.2f}", f"{one['kl_unigram']:.2f}"] for one in (start, later)
    ]
    assert rows[1][-1] == "1.000"
    counts = [int(line.split()[0]) for line in told if " latents of kind " in line]
    assert len(counts) == 5
    assert sum(counts) == 1024


def test_the_jobs_name_every_snapshot(example: SimpleNamespace, tmp_path: Path) -> None:
    train = example.pipeline_of(tmp_path, (0, 4), num_epochs=1).resolved()[1]
    assert isinstance(train, TrainSpec)
    assert train.dictionaries[0].sources == [f"step{step}/{example.POINT}" for step in (0, 4)]
    assert train.num_epochs == 1
