"""The parts of the example by hand; what it runs is tested with the jobs, what it trains with the snapshots."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from schemas.train import TrainSpec

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "concepts_over_training.py")))


@pytest.mark.slow
def test_a_model_is_compared_with_the_frequencies_of_its_text(example: SimpleNamespace, tmp_path: Path) -> None:
    """One that has learned nothing is as far from unigrams as its loss is from their entropy."""
    example.checkpoints.train(tmp_path / "checkpoints", (0, 20), batch=8)
    unigram, bigram, (start, later) = example.phases(tmp_path, (0, 20), num_contexts=16)
    assert bigram < unigram - 1
    assert start.to_unigram == pytest.approx(start.loss - unigram, abs=0.3)
    assert later.loss < start.loss - 0.5
    assert later.to_unigram < start.to_unigram
    assert min(later.to_unigram, later.to_bigram) > 0


def test_the_jobs_name_every_snapshot(example: SimpleNamespace, tmp_path: Path) -> None:
    train = example.pipeline_of(tmp_path, (0, 4), num_epochs=1).resolved()[1]
    assert isinstance(train, TrainSpec)
    assert train.dictionaries[0].sources == [f"step{step}/{example.POINT}" for step in (0, 4)]
    assert train.num_epochs == 1
