"""The geometric median: known answers, and what makes it another thing than the mean."""

from __future__ import annotations

import math

import torch

from pipeline.dictionaries.geometric_median import geometric_median


def test_known_answers() -> None:
    square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]])
    torch.testing.assert_close(geometric_median(square), torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)
    # A triangle with an angle of 120 degrees or more: the median is that corner itself.
    flat = torch.tensor([[0.0, 0.0], [1.0, 0.1], [-1.0, 0.1]])
    torch.testing.assert_close(geometric_median(flat), torch.zeros(2, dtype=torch.float64), atol=1e-4, rtol=0)
    # An equilateral one: its centre (Fermat's point).
    corners = torch.tensor([[math.cos(a), math.sin(a)] for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)])
    torch.testing.assert_close(geometric_median(corners), torch.zeros(2, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(geometric_median(torch.ones(3, 2)), torch.ones(2, dtype=torch.float64))


def test_outliers_hardly_move_it() -> None:
    points = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    points[:10] += 1e4
    assert geometric_median(points).norm() < 0.5
    assert points.mean(0).norm() > 100


def test_no_point_near_it_is_better() -> None:
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(1)).double().exp()
    found = geometric_median(points)
    least = (points - found).norm(dim=1).sum()
    for shift in torch.cat([torch.eye(3), -torch.eye(3)]).double() * 1e-3:
        assert (points - found - shift).norm(dim=1).sum() > least
