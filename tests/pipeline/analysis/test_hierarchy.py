"""Kinds of latents whose firing is known, and the rank test by counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.analysis.hierarchy import KINDS, FiringSums, hierarchy_figures, later, repeats


def test_the_rank_test_by_counting_pairs() -> None:
    first, second = torch.tensor([0, 1, 1, 3]), torch.tensor([1, 2, 3, 3, 4])
    pairs = [(b > a) + 0.5 * (b == a) for a in first.tolist() for b in second.tolist()]
    chance, p = later(first, second)
    assert chance == pytest.approx(sum(pairs) / len(pairs))
    # U = 16 of 20 pairs, mean 10; ties of 3, 3 and no other: variance 20 / 12 * (10 - 48 / 72).
    assert p == pytest.approx(math.erfc(6 / math.sqrt(20 / 12 * (10 - 48 / 72)) / math.sqrt(2)))
    assert later(second, first) == (pytest.approx(1 - chance), pytest.approx(p))
    assert later(torch.arange(40), torch.arange(40) + 30)[1] < 1e-6
    assert later(torch.zeros(3), torch.zeros(2)) == (0.5, 1.0)


def test_repeats_are_pairs_seen_in_the_same_context() -> None:
    ids, contexts = np.array([1, 2, 1, 2, 1, 1, 2, 1]), np.array([0, 0, 0, 0, 0, 5, 5, 5])
    assert repeats(ids, contexts, 2).tolist() == [False, False, False, True, True, False, False, False]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=30), st.integers(1, 3))
def test_repeats_by_searching(rows: list[tuple[int, bool]], length: int) -> None:
    ids, contexts = np.array([token for token, _ in rows], dtype=np.int64), np.cumsum([new for _, new in rows])
    found = repeats(ids, contexts, length)
    for place in range(len(rows)):
        start = int(np.searchsorted(contexts, contexts[place]))
        own = ids[place - length + 1 : place + 1].tolist() if place - length + 1 >= start else None
        earlier = [ids[end - length + 1 : end + 1].tolist() for end in range(start + length - 1, place)]
        assert found[place] == (own is not None and own in earlier)


def test_kinds_of_planted_latents() -> None:
    chance = np.random.default_rng(0)
    token = chance.integers(0, 9, 4000)
    previous = np.concatenate([[0], token[:-1]])
    repeated = chance.random(4000) < 0.25
    on = {
        0: token == 4,  # one token
        1: previous == 2,  # behind one token
        2: repeated,  # on repeats
        3: chance.random(4000) < 0.1,  # anything
        4: np.arange(4000) < 3,  # hardly ever
        5: (token == 4) & (previous == 2),  # one token behind one token: token identity goes first
    }
    sums = FiringSums(7, 9)
    for start in range(0, 4000, 1500):  # in batches
        part = slice(start, start + 1500)
        rows = [(latent, row) for latent, mask in on.items() for row in np.flatnonzero(mask[part])]
        latents, places = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
        sums.add(
            latents, np.ones(len(rows), dtype=np.float32), places,
            token=token[part], previous=previous[part], repeats=repeated[part],
        )  # fmt: skip
    shares = sums.shares()
    kinds = [KINDS[kind] for kind in shares.kind]
    assert kinds == ["token_identity", "previous_token", "induction", "other", "rare", "token_identity", "rare"]
    assert shares.repeat_rate == pytest.approx(repeated.mean())
    peak = torch.tensor([0, 2, 3, 1, 0, 1, -1])
    figures = hierarchy_figures(shares, peak, peak)["kinds"]
    assert (figures["token_identity"]["count"], figures["token_identity"]["peak"]) == (2, 1.5)
    assert figures["induction"]["against_token_identity"]["peak"]["chance"] == 1.0
    assert figures["rare"]["count"] == 1  # the other one has no norm anywhere
