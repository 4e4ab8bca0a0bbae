"""Does a sparse autoencoder recover features that are known to be there?

512 unit features share 128 channels, five are on in a row on average, rare ones rarely. A ReLU dictionary of 1024
latents is trained at several weights of the L1 penalty; MMCS is the mean over true features of the largest cosine
with a latent's decoder direction. Too small a weight leaves features mixed, too large a one loses the rare ones.

    python examples/superposition.py                    lambda = 1
    python examples/superposition.py 0.3 1 3 8          about half a minute for each
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass

import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.similarity import max_cosines
from pipeline.synthetic import Superposition
from pipeline.synthetic_training import train_on_samples
from schemas.activation import ReluL1
from schemas.dictionary import DictionarySpec

POINT = "rows"
WIDTH, NUM_LATENTS = 128, 1024
FREQUENT = 256


@dataclass(frozen=True)
class Recovery:
    """What one dictionary found."""

    explained_variance: float
    """1 - FVU on fresh rows."""
    l0: float
    """Mean number of active latents of a row."""
    num_dead: int
    """Latents that no fresh row activates."""
    mmcs: float
    """Over all true features."""
    mmcs_frequent: float
    """Over the 256 most frequent ones."""


def train(l1_coefficient: float, *, num_steps: int = 1500, batch_rows: int = 512, seed: int = 0) -> Recovery:
    """Train on fresh rows in every step and compare with the truth."""
    data = Superposition(width=WIDTH, seed=seed)
    scale = math.sqrt(WIDTH) / float(data.sample(20_000).norm(dim=1).mean())
    spec = DictionarySpec(
        name="superposition",
        sources=[POINT],
        num_latents=NUM_LATENTS,
        activation=ReluL1(l1_coefficient=l1_coefficient),
        learning_rate=2e-3,
        seed=seed,
    )
    dictionary = train_on_samples(
        spec, lambda num_rows: {POINT: data.sample(num_rows)}, {POINT: WIDTH}, num_steps=num_steps,
        batch_rows=batch_rows, scales={POINT: scale},
    )  # fmt: skip
    return examine(dictionary, data)


@torch.no_grad()
def examine(dictionary: Dictionary, data: Superposition, *, num_rows: int = 20_000) -> Recovery:
    """Compare a dictionary with fresh rows and with the true features."""
    rows_BD = dictionary.join_sources({POINT: data.sample(num_rows)})
    codes_BF = dictionary.codes_dense(rows_BD)
    error = (dictionary.decode(codes_BF) - rows_BD).square().sum()
    spread = (rows_BD - rows_BD.mean(0)).square().sum()
    active_BF = codes_BF > 0
    cosines_G = max_cosines(data.features, dictionary.decoder)
    return Recovery(
        explained_variance=1 - float(error / spread),
        l0=float(active_BF.sum(1).double().mean()),
        num_dead=int((~active_BF.any(0)).sum()),
        mmcs=float(cosines_G.mean()),
        mmcs_frequent=float(cosines_G[:FREQUENT].mean()),
    )


def random_directions() -> float:
    """MMCS of a dictionary of random directions: what chance reaches."""
    directions = torch.randn((NUM_LATENTS, WIDTH), generator=torch.Generator().manual_seed(1))
    return float(max_cosines(Superposition(width=WIDTH).features, directions).mean())


def main(coefficients: list[float]) -> None:
    """A row for each weight of the penalty."""
    print(f"MMCS of random directions: {random_directions():.3f}")
    print(f"{'lambda':>7} {'EV':>6} {'L0':>6} {'dead':>5} {'MMCS':>6} {'top 256':>8} {'time':>6}", flush=True)
    for coefficient in coefficients:
        started = time.perf_counter()
        found = train(coefficient)
        print(
            f"{coefficient:7g} {found.explained_variance:6.3f} {found.l0:6.1f} {found.num_dead:5d} "
            f"{found.mmcs:6.3f} {found.mmcs_frequent:8.3f} {time.perf_counter() - started:5.0f}s",
            flush=True,
        )


if __name__ == "__main__":
    main([float(argument) for argument in sys.argv[1:]] or [1.0])
