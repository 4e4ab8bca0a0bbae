"""Reconstruction figures over a stream of rows, in unscaled activation space.

Reads batches of activations and what a dictionary made of them; gives the figures of ``Reconstruction``. All sums are
float64, and nothing depends on how the rows were cut into batches but for the last bits.

    FVU          sum ||x - x_hat||^2 / sum ||x - mean||^2, the mean taken over the whole set of rows
    L0           mean number of latents above zero in a row
    dead share   share of latents that fired on none of the rows
    density      per latent, the share of rows on which it fired; shown as log10

B batch rows, D d_model, F latents, N firings (pairs of a row and a latent above zero).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemas.errors import DivergenceError, IncompleteError


@dataclass(frozen=True)
class Firings:
    """The latents above zero of a batch, as triplets in row order."""

    row: Tensor
    """int64 [N], index within the batch."""
    latent: Tensor
    """int64 [N]."""
    value: Tensor
    """float32 [N], above zero."""

    @staticmethod
    def from_dense(codes: Tensor) -> Firings:
        """From codes [B, F]."""
        row, latent = torch.nonzero(codes > 0, as_tuple=True)
        return Firings(row, latent, codes[row, latent].float())

    @staticmethod
    def from_sparse(values: Tensor, indices: Tensor) -> Firings:
        """From the K largest codes: values [B, K] and their latents [B, K]; values of zero or less did not fire."""
        row, place = torch.nonzero(values > 0, as_tuple=True)
        return Firings(row, indices[row, place].long(), values[row, place].float())


@dataclass(frozen=True)
class Reconstruction:
    """The figures of one dictionary."""

    num_rows: int
    fvu: float
    """Over all targets together, that is in their concatenated space."""
    fvu_of_target: dict[str, float]
    """target hook point -> FVU."""
    l0: float
    dead_share: float
    fired: npt.NDArray[np.int64]
    """[F] rows on which each latent fired."""
    peak: npt.NDArray[np.float32]
    """[F] largest value of each latent, in the dictionary's own (scaled) units."""
    total: npt.NDArray[np.float64]
    """[F] sum of each latent's values."""
    mean_of_target: dict[str, Tensor]
    """target hook point -> mean activation [D] over the rows, float64."""

    @property
    def density(self) -> npt.NDArray[np.float64]:
        """[F] share of rows on which each latent fired."""
        return self.fired / self.num_rows


class Scatter:
    """Mean and total squared deviation of rows, merged batch by batch (Chan, Golub and LeVeque 1979)."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.deviation = 0.0

    def add(self, rows_BD: Tensor) -> None:
        """Count rows [B, D] of any float type."""
        rows = rows_BD.double()
        mean = rows.mean(dim=0)
        own = float((rows - mean).square().sum())
        delta = mean.cpu() - self.mean
        total = self.count + len(rows)
        self.deviation += own + float(delta.square().sum()) * self.count * len(rows) / total
        self.mean += delta * (len(rows) / total)
        self.count = total


class ReconstructionSums:
    """Running sums of one dictionary; ``add`` batches, then ask for ``figures``."""

    def __init__(self, name: str, num_latents: int, d_target: Mapping[str, int]) -> None:
        self.name = name
        self._scatter = {target: Scatter(width) for target, width in d_target.items()}
        self._error = dict.fromkeys(d_target, 0.0)
        self._rows = 0
        self._fired = torch.zeros(num_latents, dtype=torch.int64)
        self._total = torch.zeros(num_latents, dtype=torch.float64)
        self._peak = torch.zeros(num_latents, dtype=torch.float32)

    def add(self, actual: Mapping[str, Tensor], predicted: Mapping[str, Tensor], firings: Firings) -> None:
        """Count a batch: target hook point -> [B, D], true and predicted, both unscaled. Nothing is kept.

        Raises:
            DivergenceError: an activation or a prediction is not finite.
        """
        for target, scatter in self._scatter.items():
            truth = actual[target].double()
            error = float((truth - predicted[target].double()).square().sum())
            if not np.isfinite(error):
                self._refuse(target, truth, predicted[target])
            self._error[target] += error
            scatter.add(truth)
            num_rows = len(truth)
        self._rows += num_rows
        latent, value = firings.latent.cpu(), firings.value.cpu()
        self._fired += torch.bincount(latent, minlength=len(self._fired))
        self._total.index_add_(0, latent, value.double())
        self._peak.scatter_reduce_(0, latent, value, reduce="amax")

    def figures(self) -> Reconstruction:
        """The figures over everything added.

        Raises:
            IncompleteError: no rows were added.
            DivergenceError: the rows do not vary, so that a fraction of their variance means nothing.
        """
        if self._rows == 0:
            raise IncompleteError(f"dictionary {self.name!r}: no rows to evaluate")
        variance = {target: scatter.deviation for target, scatter in self._scatter.items()}
        for target, deviation in variance.items():
            if deviation <= 0:
                raise DivergenceError(
                    f"dictionary {self.name!r}: {target} is constant over the {self._rows} rows evaluated, "
                    "so the fraction of its variance has no value; expected rows that differ, evaluate on more rows"
                )
        return Reconstruction(
            num_rows=self._rows,
            fvu=sum(self._error.values()) / sum(variance.values()),
            fvu_of_target={target: self._error[target] / variance[target] for target in variance},
            l0=float(self._fired.sum()) / self._rows,
            dead_share=float((self._fired == 0).double().mean()),
            fired=self._fired.numpy().copy(),
            peak=self._peak.numpy().copy(),
            total=self._total.numpy().copy(),
            mean_of_target={target: scatter.mean.clone() for target, scatter in self._scatter.items()},
        )

    def _refuse(self, target: str, truth: Tensor, predicted: Tensor) -> None:
        whose = "the store's activations" if not bool(torch.isfinite(truth).all()) else "the dictionary's predictions"
        bad = truth if whose.startswith("the store") else predicted
        row = int(torch.nonzero(~torch.isfinite(bad).all(dim=1))[0])
        raise DivergenceError(
            f"dictionary {self.name!r}: {whose} at {target} are not finite (first in row {self._rows + row} of the "
            "evaluation); expected finite numbers: leave such rows out by rows.max_norm_multiple, or train again"
        )


def density_histogram(
    density: npt.NDArray[np.float64], num_rows: int, *, bins_of_decade: int = 5
) -> tuple[list[float], list[int]]:
    """(edges of log10 density, latents in each bin) over the latents that fired; the last edge is 0, that is 1 of 1."""
    decades = int(np.ceil(np.log10(max(num_rows, 10))))
    edges = np.linspace(-decades, 0, decades * bins_of_decade + 1)
    counts, _ = np.histogram(np.log10(density[density > 0]), bins=edges)
    return [round(float(edge), 6) for edge in edges], [int(count) for count in counts]
