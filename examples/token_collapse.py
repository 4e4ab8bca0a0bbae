"""Do tokens become alike in a deep stack of attention, and does a controller keep them apart?

32 rows of 64 channels go through 24 layers of attention alone: random projections for queries and keys, the rows
themselves as values, no residual connection and no MLP. Softmax averages them into one. PID attention (Nguyen et al.
2024, arXiv 2402.15989) steers each layer back to the values of the first; with P alone it is NeuTRENO.

    python examples/token_collapse.py                 five seeds, a few seconds
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.networks.carried import Carried
from pipeline.networks.pid import steer
from schemas.network import PidAttention

TOKENS, WIDTH, LAYERS = 32, 64, 24
CONTROLLERS = {
    "softmax": PidAttention(proportional=0, integral=0, derivative=0),
    "P .6": PidAttention(proportional=0.6, integral=0, derivative=0),
    "PID .5 .05 .05": PidAttention(proportional=0.5, integral=0.05, derivative=0.05),
    "PID .8 .5 .05": PidAttention(proportional=0.8, integral=0.5, derivative=0.05),
}
SHOWN = (1, 4, 8, 12, 24)


def stack(gains: PidAttention, *, seed: int = 0, noise: float = 0.0) -> list[Tensor]:
    """[TOKENS, WIDTH] behind each layer. ``noise``: norm of what is added to the input, relative to the input."""
    source = torch.Generator().manual_seed(seed)
    rows = torch.randn((1, 1, TOKENS, WIDTH), generator=source)
    query, key = (torch.randn((LAYERS, WIDTH, WIDTH), generator=source) / WIDTH**0.5 for _ in range(2))
    shift = torch.randn(rows.shape, generator=source)
    rows = rows + noise * shift * rows.norm() / shift.norm()
    carried, found = Carried(), []
    for layer in range(LAYERS):
        scores = (rows @ query[layer]) @ (rows @ key[layer]).mT / WIDTH**0.5
        rows = steer(gains, scores.softmax(-1) @ rows, rows, carried, layer)
        found.append(rows[0, 0])
    return found


def likeness(rows: Tensor) -> float:
    """Mean cosine of all pairs of different rows."""
    unit = functional.normalize(rows.double(), dim=1)
    count = len(rows)
    return float(((unit @ unit.T).sum() - count) / (count * (count - 1)))


def curve(gains: PidAttention, *, seed: int = 0) -> list[float]:
    """Likeness behind each layer."""
    return [likeness(rows) for rows in stack(gains, seed=seed)]


def shift(gains: PidAttention, *, seed: int = 0) -> float:
    """How far the last layer moves when the input moves by a tenth, relative to itself."""
    clean, moved = (stack(gains, seed=seed, noise=noise)[-1] for noise in (0.0, 0.1))
    return float((moved - clean).norm() / clean.norm())


def main(seeds: int = 5) -> None:
    """A row for each controller: means over seeds, and the range at layer 12."""
    layers = " ".join(f"{f'layer {layer}':>9}" for layer in SHOWN)
    print(f"{'':15} {layers} {'range at 12':>14} {'norm at 24':>11} {'shift':>6}")
    for name, gains in CONTROLLERS.items():
        curves = torch.tensor([curve(gains, seed=seed) for seed in range(seeds)])
        at_12 = curves[:, 11]
        norm = sum(float(stack(gains, seed=seed)[-1].norm()) for seed in range(seeds)) / seeds
        moved = sum(shift(gains, seed=seed) for seed in range(seeds)) / seeds
        means = " ".join(f"{float(curves[:, layer - 1].mean()):9.3f}" for layer in SHOWN)
        print(f"{name:15} {means} {float(at_12.min()):6.3f} - {float(at_12.max()):.3f} {norm:11.3g} {moved:6.2f}")


if __name__ == "__main__":
    main()
