"""Which latents come early and which late: kinds of latents by what they fire on, and a rank test of their snapshots.

    token_identity   at least 0.9 of its activation is on one token
    previous_token   else: at least 0.9 of it is where the token before is one token, less than 0.5 on one token
    induction        else: at least 0.8 of it is where the last tokens came together earlier in the context, less than
                     0.5 on one token or behind one
    other            else
    rare             fired on fewer than ``MIN_FIRED`` rows, so nothing is said of it

F latents, T rows, N firings of a latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

KINDS = ("token_identity", "previous_token", "induction", "other", "rare")
ONE, MANY, ON_REPEATS = 0.9, 0.5, 0.8
MIN_FIRED = 10


@dataclass(frozen=True)
class FiringShares:
    """Of each latent's activation on some rows, [F] each; NaN of one that never fired."""

    fired: npt.NDArray[np.int64]
    on_one_token: npt.NDArray[np.float64]
    """Share on its most frequent token."""
    behind_one_token: npt.NDArray[np.float64]
    """Share behind its most frequent previous token."""
    on_repeats: npt.NDArray[np.float64]
    """Share on rows that repeat."""
    repeat_rate: float
    """Share of all rows that repeat."""

    @property
    def kind(self) -> npt.NDArray[np.int64]:
        """[F] index into ``KINDS``."""
        many = (self.on_one_token < MANY) & (self.behind_one_token < MANY)
        conditions = [
            self.fired < MIN_FIRED,
            self.on_one_token >= ONE,
            (self.behind_one_token >= ONE) & (self.on_one_token < MANY),
            (self.on_repeats >= ON_REPEATS) & many,
        ]
        return np.select(conditions, [4, 0, 1, 2], default=3)


class FiringSums:
    """``add`` firings batch by batch, then ask for ``shares``."""

    def __init__(self, num_latents: int, vocab_size: int) -> None:
        self._num_latents = num_latents
        self._vocab_size = vocab_size
        self._fired = np.zeros(num_latents, dtype=np.int64)
        self._total, self._repeated = np.zeros(num_latents), np.zeros(num_latents)
        self._by_token = (np.empty(0, dtype=np.int64), np.empty(0))
        self._by_previous = self._by_token
        self._rows = self._repeats = 0

    def add(
        self,
        latent: npt.NDArray[np.int64],
        value: npt.NDArray[np.float32],
        row: npt.NDArray[np.int64],
        *,
        token: npt.NDArray[np.int64],
        previous: npt.NDArray[np.int64],
        repeats: npt.NDArray[np.bool_],
    ) -> None:
        """Firings [N] of a batch, ``row`` [N] in it; of its rows token, token before (any number if there is none) and
        whether the row repeats."""
        size = self._num_latents
        self._fired += np.bincount(latent, minlength=size)
        self._total += np.bincount(latent, weights=value, minlength=size)
        self._repeated += np.bincount(latent, weights=value * repeats[row], minlength=size)
        self._by_token = _merged(self._by_token, latent * self._vocab_size + token[row], value)
        self._by_previous = _merged(self._by_previous, latent * self._vocab_size + previous[row], value)
        self._rows += len(token)
        self._repeats += int(repeats.sum())

    def shares(self) -> FiringShares:
        """Of everything that was added."""
        with np.errstate(invalid="ignore"):
            return FiringShares(
                self._fired,
                self._greatest(self._by_token) / self._total,
                self._greatest(self._by_previous) / self._total,
                self._repeated / self._total,
                self._repeats / max(self._rows, 1),
            )

    def _greatest(self, sums: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        found = np.zeros(self._num_latents)
        np.maximum.at(found, sums[0] // self._vocab_size, sums[1])
        return found


def repeats(ids: npt.NDArray[np.integer], contexts: npt.NDArray[np.integer], length: int) -> npt.NDArray[np.bool_]:
    """[T]: whether the last ``length`` tokens, this row's the last of them, came together earlier in the same context.
    ``contexts`` [T]: which context each row is of; rows of one are neighbours."""
    found = np.zeros(len(ids), dtype=np.bool_)
    seen: set[tuple[int, ...]] = set()
    tokens, own, first = ids.tolist(), contexts.tolist(), 0
    for place in range(len(tokens)):
        if place and own[place] != own[place - 1]:
            seen, first = set(), place
        if place - first + 1 >= length:
            gram = tuple(tokens[place - length + 1 : place + 1])
            found[place] = gram in seen
            seen.add(gram)
    return found


def later(first: torch.Tensor, second: torch.Tensor) -> tuple[float, float]:
    """Chance that a draw of ``second`` is greater than one of ``first``, ties counted half, and the two-sided p of the
    Mann-Whitney test, by the normal approximation with its correction for ties."""
    both = torch.cat([first, second]).numpy()
    _, ranks_of, counts = np.unique(both, return_inverse=True, return_counts=True)
    middle = counts.cumsum() - (counts - 1) / 2
    n, m = len(first), len(second)
    above = float(middle[ranks_of[n:]].sum()) - m * (m + 1) / 2
    ties = float((counts.astype(np.float64) ** 3 - counts).sum()) / ((n + m) * (n + m - 1))
    spread = math.sqrt(n * m / 12 * (n + m + 1 - ties))
    return above / (n * m), math.erfc(abs(above - n * m / 2) / spread / math.sqrt(2)) if spread else 1.0


def hierarchy_figures(shares: FiringShares, peak_F: torch.Tensor, onset_F: torch.Tensor) -> dict[str, Any]:
    """JSON: for each kind ``count``, mean ``peak`` and ``onset`` from 1 (None without latents that have any norm), and
    ``against_token_identity``: of peak and of onset the chance to be later, and p; None where either group is empty."""
    kind_F = torch.from_numpy(shares.kind)
    lives_F = peak_F >= 0
    groups = [lives_F & (kind_F == number) for number in range(len(KINDS))]
    index_of = {"peak": peak_F, "onset": onset_F}
    return {
        "repeat_rate": shares.repeat_rate,
        "kinds": {
            name: {
                "count": int(own_F.sum()),
                **{what: _mean(index_F[own_F]) for what, index_F in index_of.items()},
                "against_token_identity": {
                    what: _tested(index_F[groups[0]], index_F[own_F]) for what, index_F in index_of.items()
                },
            }
            for name, own_F in zip(KINDS, groups, strict=True)
        },
    }


def _mean(index: torch.Tensor) -> float | None:
    return float(index.double().mean()) + 1 if len(index) else None


def _tested(reference: torch.Tensor, own: torch.Tensor) -> dict[str, float] | None:
    return dict(zip(("chance", "p"), later(reference, own), strict=True)) if len(reference) and len(own) else None


def _merged(
    sums: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]],
    keys: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    known, inverse = np.unique(np.concatenate([sums[0], keys]), return_inverse=True)
    weights = np.concatenate([sums[1], values.astype(np.float64)])
    added: npt.NDArray[np.float64] = np.bincount(inverse, weights=weights, minlength=len(known)).astype(np.float64)
    return known, added
