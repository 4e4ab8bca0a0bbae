"""The point of least summed distance to a set of points: a centre that a few rows of huge norm do not move.

Weiszfeld's iteration (1937) with the step of Vardi and Zhang (2000) for iterates that fall on a point.

Letters: N points, D width.
"""

from __future__ import annotations

import torch


def geometric_median(points_ND: torch.Tensor, *, tolerance: float = 1e-6, max_iterations: int = 200) -> torch.Tensor:
    """[D], float64; at least one point. Ends when a step is shorter than ``tolerance`` times the mean distance."""
    points_ND = points_ND.double()
    centre = points_ND.mean(0)
    for _ in range(max_iterations):
        distance_N = torch.linalg.vector_norm(points_ND - centre, dim=1)
        apart = distance_N > 0
        if not apart.any():
            break
        weight_N = 1 / distance_N[apart]
        pull = (weight_N[:, None] * (points_ND[apart] - centre)).sum(0)
        # Points at the centre hold it with force 1 each.
        free = float(torch.linalg.vector_norm(pull)) - float((~apart).sum())
        if free <= 0:
            break
        step = pull / weight_N.sum() * (free / torch.linalg.vector_norm(pull))
        centre = centre + step
        if torch.linalg.vector_norm(step) < tolerance * distance_N.mean():
            break
    return centre
