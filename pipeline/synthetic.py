"""Data whose truth is known: the eight-token table, rows in superposition, features planted in snapshots and models.

Letters: T rows, G true features, D width, H snapshots.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType

import torch

EIGHT_TOKENS: Mapping[str, tuple[float, float, float, float]] = MappingProxyType(
    {
        "cat": (0.80, 0.30, 0.10, 0.05),
        "joyful cat": (0.82, 0.32, 0.12, 0.06),
        "dog": (0.70, 0.20, 0.05, 0.20),
        "loyal dog": (0.75, 0.30, 0.10, 0.25),
        "not cat": (0.05, 0.90, 0.40, 0.40),
        "not dog": (0.15, 0.85, 0.35, 0.50),
        "robot": (0.00, 0.70, 0.90, 0.80),
        "AI assistant": (0.10, 0.60, 0.85, 0.75),
    }
)
"""Token -> activation, four channels: four animals, two negations, two machines."""


def eight_tokens() -> torch.Tensor:
    """The table as [8, 4], in its order."""
    return torch.tensor(list(EIGHT_TOKENS.values()))


class Superposition:
    """Rows that are sparse non-negative sums of more unit features than there are channels.

    Cunningham et al. 2023 (arXiv 2309.08600), section 3, without its correlations and noise: feature i is on with a
    probability proportional to ``decay**i``, on average ``num_active`` of them, with a strength uniform on [0, 1).
    """

    def __init__(
        self,
        num_features: int = 512,
        width: int = 128,
        *,
        num_active: float = 5.0,
        decay: float = 0.99,
        seed: int = 0,
    ) -> None:
        self._generator = _stream("superposition", seed)
        directions_GD = torch.randn(num_features, width, generator=self._generator)
        self.features: torch.Tensor = torch.nn.functional.normalize(directions_GD, dim=1)
        """[G, D], rows of norm 1, the most frequent first."""
        weights_G = decay ** torch.arange(num_features, dtype=torch.float64)
        self.probabilities: torch.Tensor = (num_active * weights_G / weights_G.sum()).clamp(max=1).float()
        """[G]."""

    def sample(self, num_rows: int) -> torch.Tensor:
        """Further rows [T, D]; each call goes on in the stream of the seed."""
        shape = (num_rows, len(self.features))
        on_TG = torch.rand(shape, generator=self._generator) < self.probabilities
        strength_TG = torch.rand(shape, generator=self._generator)
        return (on_TG * strength_TG) @ self.features


class PlantedOnsets:
    """Rows of several snapshots of a training, in which every feature appears at a known snapshot and then stays.

    A feature is on in a row with the same strength at all snapshots that have it, so rows are aligned. Features
    ``rotated`` are there from the first snapshot on and take another direction at the middle one.
    """

    def __init__(
        self,
        num_snapshots: int = 8,
        num_features: int = 48,
        width: int = 32,
        *,
        num_rotated: int = 12,
        probability: float = 0.03,
        seed: int = 0,
    ) -> None:
        self._generator = _stream("onsets", seed)
        self._probability = probability
        shape = (num_features, width)
        first_GD, later_GD = (
            torch.nn.functional.normalize(torch.randn(shape, generator=self._generator), dim=1) for _ in range(2)
        )
        self.is_rotated: torch.Tensor = torch.arange(num_features) < num_rotated
        """[G] bool."""
        drawn_G = torch.randint(0, num_snapshots, (num_features,), generator=self._generator)
        self.onset: torch.Tensor = torch.where(self.is_rotated, 0, drawn_G)
        """[G] int64, first snapshot that has the feature."""
        snapshots_H1 = torch.arange(num_snapshots)[:, None]
        turned_HG = self.is_rotated & (snapshots_H1 >= num_snapshots // 2)
        directions_HGD = torch.where(turned_HG[:, :, None], later_GD, first_GD)
        self.directions: torch.Tensor = directions_HGD * (snapshots_H1 >= self.onset)[:, :, None]
        """[H, G, D], unit rows, zeros before the onset."""

    @property
    def names(self) -> list[str]:
        """Of the snapshots, in order."""
        return [f"snapshot{index}" for index in range(len(self.directions))]

    def sample(self, num_rows: int) -> dict[str, torch.Tensor]:
        """Further rows: snapshot -> [T, D], row for row the same events."""
        shape = (num_rows, len(self.onset))
        on_TG = torch.rand(shape, generator=self._generator) < self._probability
        codes_TG = on_TG * (0.5 + torch.rand(shape, generator=self._generator))
        return {name: codes_TG @ one_GD for name, one_GD in zip(self.names, self.directions, strict=True)}


class PlantedDifference:
    """Rows of two models that share features, own features each, and share some that the second has at a lesser scale.

    The second is as a fine-tuned first: what both have points the same way. Lesser features are what a sparsity
    penalty makes look exclusive (Minder et al. 2025, arXiv 2504.02922).
    """

    POINTS = ("first", "second")

    def __init__(
        self,
        *,
        num_shared: int = 24,
        num_own: int = 8,
        num_lesser: int = 16,
        lesser_scale: float = 0.3,
        width: int = 32,
        probability: float = 0.03,
        seed: int = 0,
    ) -> None:
        self._generator = _stream("difference", seed)
        self._probability = probability
        kinds = {"shared": num_shared, "first": num_own, "second": num_own, "lesser": num_lesser}
        self.kind: list[str] = [kind for kind, count in kinds.items() for _ in range(count)]
        """Of each feature [G]: shared, first, second, lesser."""
        strengths = {"shared": (1.0, 1.0), "first": (1.0, 0.0), "second": (0.0, 1.0), "lesser": (1.0, lesser_scale)}
        strength_2G = torch.tensor([strengths[kind] for kind in self.kind]).T
        shape = (len(self.kind), width)
        unit_GD = torch.nn.functional.normalize(torch.randn(shape, generator=self._generator), dim=1)
        self.directions: torch.Tensor = unit_GD * strength_2G[:, :, None]
        """[2, G, D], zeros where a model lacks a feature."""

    def sample(self, num_rows: int) -> dict[str, torch.Tensor]:
        """Further rows: model -> [T, D], row for row the same events."""
        shape = (num_rows, len(self.kind))
        on_TG = torch.rand(shape, generator=self._generator) < self._probability
        codes_TG = on_TG * (0.5 + torch.rand(shape, generator=self._generator))
        return {name: codes_TG @ one_GD for name, one_GD in zip(self.POINTS, self.directions, strict=True)}


def _stream(name: str, seed: int) -> torch.Generator:
    """A stream of its own: an initialiser that draws from the plain seed would start at the true features."""
    digest = hashlib.sha256(f"{name}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
