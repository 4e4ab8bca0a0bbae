"""The Markov source: what it says of its text is true of its text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grammar.bigram import MarkovSource, word_text
from schemas.grammar import BigramSource

SPEC = BigramSource(num_words=12, words_per_document=40, repeat_share=0.5, repeat_words=10)


def counted(source: MarkovSource, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of words and of pairs of neighbours in documents."""
    words, pairs = np.zeros(12), np.zeros((12, 12))
    for index in range(documents):
        found = source.indices(index)
        np.add.at(words, found, 1)
        np.add.at(pairs, (found[:-1], found[1:]), 1)
    return words / words.sum(), pairs / pairs.sum()


def test_words_and_pairs_of_the_documents_are_distributed_as_the_source_says() -> None:
    source = MarkovSource(SPEC, seed=3)
    words, pairs = counted(source, 8000)
    assert np.abs(words - source.unigram).max() < 0.005
    assert np.abs(pairs - source.pairs()).max() < 0.003
    # The test can tell: without the seam of the repetitions it fails.
    chain = source.unigram[:, None] * source.transitions
    assert np.abs(source.pairs() - chain).sum() > 10 * np.abs(pairs - source.pairs()).sum() / 8


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_entropies_are_those_of_the_distributions(share: float) -> None:
    source = MarkovSource(SPEC.model_copy(update={"repeat_share": share}), seed=3)
    found, pi, pairs = source.entropies(), source.unigram, source.pairs()
    given = pairs / pairs.sum(axis=1, keepdims=True)
    assert found.unigram == pytest.approx(-(pi * np.log(pi)).sum())
    assert found.bigram == pytest.approx(-(pairs[pairs > 0] * np.log(given[pairs > 0])).sum())
    rate = -(pi[:, None] * source.transitions * np.log(source.transitions)).sum()
    fresh = 30 if share else 40
    assert found.source == pytest.approx((found.unigram + (fresh - 1) * rate) / 40)


@settings(max_examples=40, deadline=None)
@given(
    num_words=st.integers(2, 40),
    zipf=st.floats(0, 4),
    concentration=st.floats(0.001, 10),
    repeat=st.integers(1, 8),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**40),
)
def test_any_source_is_stationary_and_ordered(
    num_words: int, zipf: float, concentration: float, repeat: int, share: float, seed: int
) -> None:
    spec = BigramSource(
        num_words=num_words, words_per_document=16, zipf_exponent=zipf, concentration=concentration,
        repeat_words=repeat, repeat_share=share,
    )  # fmt: skip
    source = MarkovSource(spec, seed)
    assert np.allclose(source.unigram @ source.transitions, source.unigram, atol=1e-9)
    assert source.unigram.min() > 0
    pairs = source.pairs()
    assert np.allclose(pairs.sum(axis=0), source.unigram, atol=1e-9) or share
    assert pairs.sum() == pytest.approx(1)
    found = source.entropies()
    assert found.unigram + 1e-9 >= found.bigram
    words = source.indices(7)
    assert len(words) == 16
    assert max(words) < num_words


def test_a_repeating_document_ends_with_a_copy_from_before() -> None:
    source = MarkovSource(SPEC.model_copy(update={"repeat_share": 1.0}), seed=0)
    starts = set()
    for index in range(60):
        found = source.indices(index)
        tail = found[-10:]
        at = [start for start in range(21) if found[start : start + 10] == tail]
        assert at
        starts |= set(at)
    assert len(starts) > 10


def test_words_are_different() -> None:
    assert len({word_text(index) for index in range(2048)}) == 2048
