"""Pairing of latents, and similarities of spaces whose likeness is known."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch

from pipeline.analysis import universality
from pipeline.analysis.universality import (
    Pairs,
    best_pairs,
    compare,
    conceptual,
    one_to_one,
    rsa,
    similarity_of,
    strongest_tokens,
    svcca,
)
from schemas.errors import SpecError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_pairs_are_those_of_the_correlation_matrix() -> None:
    first, second = normal(500, 7).relu(), normal(500, 9, seed=1).relu()
    second[:, 2] = 3 * first[:, 5] + 0.1 * second[:, 2]
    second[:, 4] = 0.0

    def codes() -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        return zip(first.split(64), second.split(64), strict=True)

    pairs = best_pairs(codes, block=4)
    kept = [g for g in range(9) if g != 4]
    matrix = np.corrcoef(first.numpy().T, second[:, kept].numpy().T)[:7, 7:]
    assert pairs.second.tolist() == kept
    assert pairs.first.tolist() == matrix.argmax(axis=0).tolist()
    torch.testing.assert_close(pairs.correlation, torch.from_numpy(matrix.max(axis=0)), atol=1e-5, rtol=0)
    assert pairs.first[kept.index(2)] == 5


def test_no_rows_are_refused() -> None:
    with pytest.raises(SpecError, match="no rows"):
        best_pairs(lambda: [])


def test_one_to_one_keeps_the_best_and_drops_the_weak() -> None:
    pairs = Pairs(torch.tensor([3, 3, 1, 0]), torch.tensor([0, 1, 2, 3]), torch.tensor([0.5, 0.9, 0.05, 0.3]))
    kept = one_to_one(pairs)
    assert kept.first.tolist() == [3, 0]
    assert kept.second.tolist() == [1, 3]


def test_concepts_share_a_word() -> None:
    pairs = Pairs(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]), torch.tensor([0.9, 0.9, 0.9]))
    ours = [[" cat", " dog"], [".", " cat"], [" day", " the"]]
    theirs = [[" dog", " mouse"], [" cat"], [" day"]]
    assert conceptual(pairs, ours, theirs).first.tolist() == [0, 2]
    assert conceptual(pairs, ours, theirs, dull={" the"}).first.tolist() == [0]


def test_rotation_and_scale_change_neither_similarity() -> None:
    rows = normal(200, 12)
    orthogonal = torch.linalg.qr(normal(12, 12, seed=1)).Q
    assert similarity_of(rows, 3 * rows @ orthogonal, svcca) == pytest.approx(1.0, abs=1e-5)
    # Correlation distances see the mean over channels, which a rotation moves; centred rows have none.
    centred = rows - rows.mean(1, keepdim=True)
    assert similarity_of(centred, 3 * centred, rsa) == pytest.approx(1.0, abs=1e-6)
    assert similarity_of(rows, rows @ orthogonal, rsa) > 0.8


def test_independent_rows_are_chance() -> None:
    found = compare(normal(120, 10), normal(120, 10, seed=1), svcca, num_shuffles=200)
    assert abs(found.effect) < 3
    assert universality.is_chance(found)
    assert found.observed > 0.1, "biased upwards, which is why the null is reported"


def test_no_more_pairs_than_dimensions_look_alike_whatever_they_are() -> None:
    found = compare(normal(9, 10), normal(9, 10, seed=1), svcca, num_shuffles=50)
    assert found.observed == pytest.approx(1.0, abs=1e-6)
    assert universality.is_chance(found)


@pytest.mark.parametrize("similarity", [svcca, rsa])
def test_related_rows_are_found(similarity: universality.Similarity) -> None:
    rows = normal(120, 10)
    noisy = rows @ torch.linalg.qr(normal(10, 10, seed=1)).Q + normal(120, 10, seed=2)
    found = compare(rows, noisy, similarity, num_shuffles=200)
    assert found.effect > 3
    assert not universality.is_chance(found)


@pytest.mark.parametrize("similarity", [svcca, rsa])
def test_another_order_of_rows_is_that_order(similarity: universality.Similarity) -> None:
    rows, others = normal(40, 6), normal(40, 8, seed=1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    assert similarity(rows, others)(order) == pytest.approx(similarity_of(rows, others[order], similarity), abs=1e-9)


def test_rsa_is_the_spearman_correlation_of_dissimilarities() -> None:
    rows, others = normal(30, 5), normal(30, 5, seed=1) + normal(30, 5)
    upper = np.triu_indices(30, 1)
    ranks = [np.corrcoef(one.numpy())[upper].argsort().argsort() for one in (rows, others)]
    assert similarity_of(rows, others, rsa) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)


def test_the_strongest_tokens_are_those_of_the_strongest_rows() -> None:
    codes = torch.tensor([[0.0, 1.0, 0.0], [3.0, 2.0, 0.0], [1.0, 5.0, 0.0], [2.0, 4.0, 0.0]])
    tokens = torch.tensor([10, 11, 12, 11])
    found = strongest_tokens(zip(codes.split(2), tokens.split(2), strict=True), count=3)
    assert found == [[11, 11, 12], [12, 11, 11], []]
    assert strongest_tokens([(codes, tokens)], count=3) == found


def test_shuffles_come_from_the_seed() -> None:
    rows, others = normal(30, 4), normal(30, 4, seed=1)
    first, again = (compare(rows, others, svcca, num_shuffles=20, seed=5) for _ in range(2))
    assert first == again
    assert compare(rows, others, svcca, num_shuffles=20, seed=6).null_mean != first.null_mean


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(SpecError, match="three paired rows"):
        svcca(normal(2, 4), normal(2, 4))


def test_ranks_share_ties() -> None:
    assert universality._ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0, 2.5, 1]
