"""How heavy a sparsity penalty lets a tied autoencoder find the features that are there?

Experiment of Cunningham et al. 2023 (arXiv 2309.08600), section 3, whose autoencoders have one matrix M for both ways:

    c = ReLU(M x + b)        x_hat = M^T c + b'        L = |x - x_hat|^2 + alpha |c|_1

256 unit features share 64 channels, four are on in a row on average, rare ones rarely. Autoencoders of two sizes are
trained at each alpha. MMCS to the truth is the mean over true features of the largest cosine with a row of M; MMCS
between sizes, the mean over the smaller one's rows of the largest cosine with the larger one's, needs no truth, and so
is what one has on a real model. Rows of M keep their own norms, which the penalty is weighted by; the paper has them
at 1 and no b'.

    python examples/tied_sae.py                         two minutes
    python examples/tied_sae.py 0.3 1 3
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass

import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.similarity import mmcs
from pipeline.synthetic import Superposition
from pipeline.synthetic_training import train_on_samples
from schemas.activation import ReluL1
from schemas.dictionary import DictionarySpec

POINT = "rows"
WIDTH, NUM_FEATURES = 64, 256
SIZES = (256, 512)
ALPHAS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Found:
    """One autoencoder on fresh rows."""

    fvu: float
    l0: float
    num_dead: int
    """Latents that no fresh row activates."""
    mmcs: float
    """Over the true features."""


def train(alpha: float, num_latents: int, *, num_steps: int = 1000, batch_rows: int = 512, seed: int = 0) -> Dictionary:
    """A tied autoencoder on fresh rows in every step."""
    data = _data(seed)
    scale = math.sqrt(WIDTH) / float(data.sample(20_000).norm(dim=1).mean())
    spec = DictionarySpec(
        name="tied", sources=[POINT], num_latents=num_latents, activation=ReluL1(l1_coefficient=alpha), tied=True,
        learning_rate=2e-3, seed=seed,
    )  # fmt: skip
    return train_on_samples(
        spec, lambda num_rows: {POINT: data.sample(num_rows)}, {POINT: WIDTH}, num_steps=num_steps,
        batch_rows=batch_rows, scales={POINT: scale},
    )  # fmt: skip


@torch.no_grad()
def examine(dictionary: Dictionary, *, num_rows: int = 20_000, seed: int = 0) -> Found:
    """On rows that begin like those of training, far fewer of which it has seen than it could remember."""
    data = _data(seed)
    rows_BD = dictionary.join_sources({POINT: data.sample(num_rows)})
    codes_BF = dictionary.codes_dense(rows_BD)
    error = (dictionary.decode(codes_BF) - rows_BD).square().sum()
    active_BF = codes_BF > 0
    return Found(
        fvu=float(error / (rows_BD - rows_BD.mean(0)).square().sum()),
        l0=float(active_BF.sum(1).double().mean()),
        num_dead=int((~active_BF.any(0)).sum()),
        mmcs=mmcs(data.features, dictionary.decoder),
    )


def _data(seed: int) -> Superposition:
    return Superposition(NUM_FEATURES, WIDTH, num_active=4.0, seed=seed)


def main(alphas: list[float]) -> None:
    """A row for each weight of the penalty."""
    large = SIZES[1]
    print(
        f"{'alpha':>6} {'FVU':>6} {'L0':>6} {'dead':>5} {'MMCS':>6}   | {large} latents, and between sizes", flush=True
    )
    for alpha in alphas:
        started = time.perf_counter()
        pair = [train(alpha, size) for size in SIZES]
        first, second = (examine(one) for one in pair)
        between = mmcs(pair[0].decoder.detach(), pair[1].decoder.detach())
        print(
            f"{alpha:6g} {first.fvu:6.3f} {first.l0:6.1f} {first.num_dead:5d} {first.mmcs:6.3f}   | {second.fvu:6.3f} "
            f"{second.l0:6.1f} {second.num_dead:5d} {second.mmcs:6.3f} {between:6.3f} "
            f"{time.perf_counter() - started:5.0f}s",
            flush=True,
        )


if __name__ == "__main__":
    main([float(argument) for argument in sys.argv[1:]] or list(ALPHAS))
