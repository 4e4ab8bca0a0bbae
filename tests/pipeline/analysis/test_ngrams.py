"""Frequencies and entropies of text that is known, however it is cut into parts; and models that predict just these."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.analysis.ngrams import Ngrams
from pipeline.analysis.phases import phase_of
from pipeline.models.load import LoadedModel
from pipeline.store.rows import TokenRows
from schemas.errors import ModelError, SpecError
from schemas.model import ModelSpec


def rows_of(contexts: list[list[int]]) -> TokenRows:
    ids = [token for context in contexts for token in context]
    places = [place for context in contexts for place in range(len(context))]
    zeros = np.zeros(len(ids))
    return TokenRows(np.arange(len(ids)), np.array(ids), zeros, np.array(places), zeros)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=8).filter(
        lambda contexts: any(len(context) > 1 for context in contexts)
    ),
    st.lists(st.integers(0, 48), max_size=4),
)
def test_counts_do_not_depend_on_the_parts(contexts: list[list[int]], cuts: list[int]) -> None:
    rows = rows_of(contexts)
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    found = Ngrams.of([rows.slice(a, b) for a, b in pairwise(edges)], 5)
    pairs = Counter(pair for context in contexts for pair in pairwise(context))
    assert dict(zip(zip(found.before.tolist(), found.after.tolist(), strict=True), found.count, strict=True)) == pairs
    assert found.unigram.tolist() == [sum(n for (_, b), n in pairs.items() if b == token) for token in range(5)]
    ids, shares = found.following(contexts[0][0])
    of_first = {b: n for (a, b), n in pairs.items() if a == contexts[0][0]}
    assert dict(zip(ids.tolist(), shares, strict=True)) == pytest.approx(
        {b: n / sum(of_first.values()) for b, n in of_first.items()}
    )


def test_entropies_of_a_chain() -> None:
    """Uniform over four tokens, each followed by one of two: log 4 and log 2."""
    chance = np.random.default_rng(0)
    tokens = [0]
    for bit in chance.integers(0, 2, 40_000):
        tokens.append((tokens[-1] * 2 + int(bit)) % 4)
    unigram, bigram = Ngrams.of([rows_of([tokens])], 4).entropies
    assert unigram == pytest.approx(np.log(4), abs=1e-3)
    assert bigram == pytest.approx(np.log(2), abs=1e-3)


def test_no_pairs_are_refused() -> None:
    with pytest.raises(SpecError, match="no context of two tokens"):
        Ngrams.of([rows_of([[1], [2]])], 3)


class Table(torch.nn.Module):
    """Predicts by the last token alone."""

    def __init__(self, logits_VV: torch.Tensor) -> None:
        super().__init__()
        self.logits_VV = logits_VV

    def forward(self, input_ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.logits_VV[input_ids])


def loaded(logits_VV: torch.Tensor) -> LoadedModel:
    cpu = torch.device("cpu")
    return LoadedModel(Table(logits_VV), ModelSpec(path="table"), torch.float32, cpu, {}, d_model=0, num_layers=0)


def test_models_that_know_the_frequencies() -> None:
    chance, shares = np.random.default_rng(1), [0.4, 0.2, 0.2, 0.1, 0.05, 0.05]
    contexts = [chance.choice(6, size=length, p=shares).tolist() for length in [9] * 30 + [4] * 9]
    ngrams = Ngrams.of([rows_of(contexts)], 6)
    texts = [np.array(context, dtype=np.int32) for context in contexts]
    unigram, bigram = ngrams.entropies
    p_V = torch.from_numpy(ngrams.unigram / ngrams.unigram.sum())
    knows_unigrams = phase_of(loaded(p_V.log().expand(6, 6)), texts, ngrams)
    assert knows_unigrams.to_unigram == pytest.approx(0, abs=1e-9)
    assert knows_unigrams.loss == pytest.approx(unigram)
    # What it lacks of the bigrams is what they have more than the unigrams.
    assert knows_unigrams.to_bigram == pytest.approx(unigram - bigram)
    pairs_VV = torch.full((6, 7), 1e-30, dtype=torch.float64)  # a column more: a padded vocabulary
    for a, b, count in zip(ngrams.before, ngrams.after, ngrams.count, strict=True):
        pairs_VV[a, b] = count
    knows_bigrams = phase_of(loaded(pairs_VV.log()), texts, ngrams)
    assert knows_bigrams.to_bigram == pytest.approx(0, abs=1e-9)
    assert knows_bigrams.loss == pytest.approx(bigram)
    knows_nothing = phase_of(loaded(torch.zeros(6, 6)), texts, ngrams)
    assert knows_nothing.loss == pytest.approx(np.log(6))
    assert knows_nothing.to_unigram == pytest.approx(np.log(6) - unigram)


def test_a_model_of_another_vocabulary_is_refused() -> None:
    ngrams = Ngrams.of([rows_of([[0, 5, 2]])], 6)
    with pytest.raises(ModelError, match="predicts 4 tokens, the corpus has ids up to 5"):
        phase_of(loaded(torch.zeros(6, 4)), [np.array([0, 3, 2], dtype=np.int32)], ngrams)
