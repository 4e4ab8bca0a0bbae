"""Contexts of rows, and pairs of one context, against counting by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order.contexts import ContextIndex, ContextPairs, ScatteredContextPairs

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def by_hand(contexts: np.ndarray) -> float:
    _, counts = np.unique(contexts, return_counts=True)
    return float((counts * (counts - 1)).sum() / max(len(contexts) * (len(contexts) - 1), 1))


@settings(deadline=None)
@given(lengths=lengths, chunk_rows=st.integers(1, 40), seed=st.integers(0, 9))
def test_the_context_of_any_row(lengths: list[int], chunk_rows: int, seed: int) -> None:
    expected = np.repeat(np.arange(len(lengths)), lengths)
    begins = np.concatenate([[True], np.diff(expected) > 0])
    chunks = [np.packbits(begins[start : start + chunk_rows]) for start in range(0, len(begins), chunk_rows)]
    rows = np.random.default_rng(seed).integers(0, len(begins), 60)
    assert np.array_equal(ContextIndex(chunks, chunk_rows=chunk_rows).of(rows), expected[rows])


@settings(deadline=None)
@given(lengths=lengths, cuts=st.lists(st.integers(0, 300), max_size=6), seed=st.integers(0, 9))
def test_pairs_of_one_context_in_any_order(lengths: list[int], cuts: list[int], seed: int) -> None:
    contexts = np.repeat(np.arange(len(lengths)) * 3, lengths)
    in_order, scattered = ContextPairs(), ScatteredContextPairs()
    mixed = np.random.default_rng(seed).permutation(contexts)
    for start, stop in pairwise([0, *sorted(cuts), len(contexts)]):
        in_order.add(contexts[start:stop])
        scattered.add(mixed[start:stop])
    assert in_order.rate() == pytest.approx(by_hand(contexts), rel=1e-12)
    assert scattered.rate() == pytest.approx(by_hand(contexts), rel=1e-12)


def test_many_merges_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = ScatteredContextPairs()
    merges = []
    merge = pairs._merge
    monkeypatch.setattr(pairs, "_merge", lambda: (merges.append(1), merge()))
    contexts = np.random.default_rng(0).integers(0, 10**5, 5 * 2**20)
    for part in np.split(contexts, 20):
        pairs.add(part)
    assert pairs.rate() == pytest.approx(by_hand(contexts), rel=1e-12)
    assert len(merges) >= 4
