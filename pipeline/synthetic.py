"""Data whose truth is known: the eight-token table, and rows in superposition of known features.

Letters: T rows, G true features, D width.
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
        # A stream of its own: an initialiser that draws from the plain seed would start at the true features.
        digest = hashlib.sha256(f"superposition/{seed}".encode()).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
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
