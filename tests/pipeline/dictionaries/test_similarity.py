"""Cosines between sets of directions, against their definition."""

from __future__ import annotations

import pytest
import torch

from pipeline.dictionaries.similarity import max_cosines, mmcs


def test_against_the_definition() -> None:
    a, b = torch.randn(7, 5), torch.randn(9, 5)
    expected = [max(float(torch.cosine_similarity(x, y, dim=0)) for y in b) for x in a]
    assert max_cosines(a, b).tolist() == pytest.approx(expected, abs=1e-6)
    assert max_cosines(a, b, block_rows=2).tolist() == pytest.approx(expected, abs=1e-6)
    assert mmcs(a, b) == pytest.approx(sum(expected) / 7, abs=1e-6)


def test_scale_and_order_do_not_matter() -> None:
    a = torch.randn(6, 4)
    b = a[torch.randperm(6)] * torch.rand(6, 1).add(0.1)
    assert mmcs(a, b) == pytest.approx(1.0, abs=1e-6)


def test_it_has_two_directions() -> None:
    found = torch.eye(3)[:1]
    assert mmcs(found, torch.eye(3)) == 1.0
    assert mmcs(torch.eye(3), found) == pytest.approx(1 / 3)


def test_opposite_and_zero_directions_do_not_count() -> None:
    assert mmcs(torch.eye(2)[:1], -torch.eye(2)[:1]) == -1.0
    assert mmcs(torch.zeros(1, 2), torch.eye(2)) == 0.0
