"""The parts of the example by hand; what it runs is tested with the jobs, what it trains with the snapshots."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from schemas.train import TrainSpec

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "concepts_over_training.py")))


def test_the_rank_test_by_counting_pairs(example: SimpleNamespace) -> None:
    first, second = torch.tensor([0, 1, 1, 3]), torch.tensor([1, 2, 3, 3, 4])
    pairs = [(b > a) + 0.5 * (b == a) for a in first.tolist() for b in second.tolist()]
    chance, p = example.later(first, second)
    assert chance == pytest.approx(sum(pairs) / len(pairs))
    # U = 16 of 20 pairs, mean 10; ties of 3, 3 and no other: variance 20 / 12 * (10 - 48 / 72).
    assert p == pytest.approx(math.erfc(6 / math.sqrt(20 / 12 * (10 - 48 / 72)) / math.sqrt(2)))
    assert example.later(second, first) == (pytest.approx(1 - chance), pytest.approx(p))
    assert example.later(torch.arange(40), torch.arange(40) + 30)[1] < 1e-6
    assert example.later(torch.zeros(3), torch.zeros(2)) == (0.5, 1.0)


def test_repeats_are_pairs_seen_in_the_same_context(example: SimpleNamespace) -> None:
    ids, contexts = [1, 2, 1, 2, 1, 1, 2, 1], [0, 0, 0, 0, 0, 5, 5, 5]
    assert example._repeats(ids, contexts) == [False, False, False, True, True, False, False, False]


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
