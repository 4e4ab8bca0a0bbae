"""When does a model store more features than it has dimensions? The toy models of superposition.

Five features are pressed into two dimensions and read out again, x' = ReLU(W^T W x + b). Each feature is zero with a
chance S, else uniform in [0, 1]; feature i counts 0.9^i in the loss (Elhage et al. 2022, Toy Models of Superposition).
Dense features: the two that count most have a dimension each. Sparse ones: pairs share an axis with opposite signs,
and then all five lie as a pentagon. Whatever the sparsity, their dimensionalities |W_i|^2 / sum_j (w_i . W_j)^2 add up
to the two dimensions.

    python examples/toy_superposition.py                     half a minute
    python examples/toy_superposition.py --plot toy.svg      and draws the features of one start at each sparsity

Letters: S starts, B rows, G features, M dimensions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pictures
import torch

from pipeline.analysis.trajectories import dimensionalities

NUM_FEATURES, WIDTH, IMPORTANCE = 5, 2, 0.9
SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
IS_STORED = 0.5
"""Squared norm of W_i from which a feature counts as represented."""


@dataclass(frozen=True)
class Geometry:
    """How S starts store their features."""

    features: torch.Tensor
    """W, a row for each feature, [S, G, M]."""
    dimensionality: torch.Tensor
    """D_i, [S, G]; of a feature that is not represented it says nothing."""

    @property
    def is_stored(self) -> torch.Tensor:
        """[S, G] bool."""
        return self.features.square().sum(2) > IS_STORED

    @property
    def num_stored(self) -> torch.Tensor:
        """Features that are represented, [S]."""
        return self.is_stored.sum(1)

    def cosines(self, start: int) -> torch.Tensor:
        """Between each two different features of one start, ascending."""
        unit_GM = torch.nn.functional.normalize(self.features[start], dim=1)
        above = torch.triu_indices(len(unit_GM), len(unit_GM), offset=1)
        return (unit_GM @ unit_GM.T)[above[0], above[1]].sort().values


def train(
    sparsity: float, *, num_starts: int = 6, num_steps: int = 6000, batch_rows: int = 256, learning_rate: float = 3e-3
) -> Geometry:
    """Train all starts at once, each on rows of its own: every parameter has a leading axis of starts."""
    generator = torch.Generator().manual_seed(0)
    spread = (2 / (NUM_FEATURES + WIDTH)) ** 0.5  # Xavier normal, as in the paper
    weights_SGM = torch.randn((num_starts, NUM_FEATURES, WIDTH), generator=generator).mul_(spread).requires_grad_()
    bias_S1G = torch.zeros((num_starts, 1, NUM_FEATURES), requires_grad=True)
    importance_G = IMPORTANCE ** torch.arange(NUM_FEATURES)
    optimiser = torch.optim.AdamW([weights_SGM, bias_S1G], lr=learning_rate, weight_decay=0.0, fused=True)
    shape = (num_starts, batch_rows, NUM_FEATURES)
    for step in range(num_steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * (1 - step / num_steps)
        is_on = torch.rand(shape, generator=generator) >= sparsity
        x_SBG = torch.rand(shape, generator=generator) * is_on
        y_SBG = torch.relu(torch.baddbmm(bias_S1G, x_SBG @ weights_SGM, weights_SGM.mT))
        # A mean within a start, a sum over starts: each has the gradient that it would have alone.
        loss = (importance_G * (y_SBG - x_SBG).square()).sum(2).mean(1).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    features = weights_SGM.detach()
    return Geometry(features, torch.stack([dimensionalities(one) for one in features]))


def draw(found: dict[float, Geometry], path: Path) -> None:
    """The features of the first start at each sparsity, as arrows in the plane."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * len(found), 2.4), layout="constrained")
    for axes, (sparsity, geometry) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for index, (x, y) in enumerate(geometry.features[0].tolist()):
            axes.plot([0, x], [0, y], color=f"C{index}", marker="o", markevery=[1])
        axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[], yticks=[], title=f"S = {sparsity:g}")
    pictures.save(figure, path)


def main(arguments: Sequence[str]) -> None:
    """A row for each sparsity."""
    print("six starts at each sparsity: features represented, dimensionality of these, sum of all dimensionalities")
    found = {}
    for sparsity in SPARSITIES:
        geometry = found[sparsity] = train(sparsity)
        counts = " ".join(f"{count}" for count in geometry.num_stored.tolist())
        stored = geometry.dimensionality[geometry.is_stored]
        totals = geometry.dimensionality.sum(1)
        print(
            f"S {sparsity:4g}   represented {counts}   D {stored.min():.2f} to {stored.max():.2f}, mean "
            f"{stored.mean():.2f}   sum of D {totals.min():.3f} to {totals.max():.3f}",
            flush=True,
        )
    cosines = " ".join(f"{cosine:.2f}" for cosine in found[SPARSITIES[-1]].cosines(0).tolist())
    print(f"cosines of the first start at S {SPARSITIES[-1]:g} (a pentagon has -0.81 and 0.31): {cosines}")
    if arguments[:1] == ["--plot"]:
        draw(found, Path(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
