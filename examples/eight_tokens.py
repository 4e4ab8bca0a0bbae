"""Which concepts does a sparse autoencoder find in eight tokens, and how often, over many random starts?

Twenty latents, mean squared error + w * mean |code|, Adam, all eight rows in every step. A latent stands for a concept
if it is active (above 5 % of its maximum) on exactly the tokens of that concept. All starts are trained at once: each
parameter has a leading axis of seeds.

    python examples/eight_tokens.py                     twenty seconds
    python examples/eight_tokens.py --plot eight.svg    and draws the shares

Letters: S seeds, N tokens, D channels, F latents.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pictures
import torch

from pipeline.synthetic import EIGHT_TOKENS, eight_tokens

CONCEPTS = {
    "animals": {"cat", "joyful cat", "dog", "loyal dog"},
    "machines": {"robot", "AI assistant"},
    "not animals": {"not cat", "not dog", "robot", "AI assistant"},
}


class SeededAutoencoders(torch.nn.Module):
    """S independent autoencoders D -> F -> D, ReLU on the code, none on the output."""

    def __init__(self, num_seeds: int, num_latents: int, width: int = 4) -> None:
        """Starts as ``torch.nn.Linear`` does: uniform within 1 / sqrt(inputs), weights and biases."""
        super().__init__()

        def uniform(fan_in: int, *shape: int) -> torch.nn.Parameter:
            draws = []
            for seed in range(num_seeds):
                generator = torch.Generator().manual_seed(seed * 1009 + len(self._parameters))
                draws.append(torch.rand(shape, generator=generator) * 2 - 1)
            return torch.nn.Parameter(torch.stack(draws) / math.sqrt(fan_in))

        self.encoder = uniform(width, width, num_latents)
        self.b_enc = uniform(width, 1, num_latents)
        self.decoder = uniform(num_latents, num_latents, width)
        self.b_dec = uniform(num_latents, 1, width)

    def forward(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [S, N, F] and reconstructions [S, N, D]."""
        x_SND = x_ND.expand(len(self.encoder), -1, -1)
        codes_SNF = torch.relu(torch.baddbmm(self.b_enc, x_SND, self.encoder))
        return codes_SNF, torch.baddbmm(self.b_dec, codes_SNF, self.decoder)


@dataclass(frozen=True)
class Findings:
    """What S starts found."""

    mse: torch.Tensor
    """[S]."""
    num_alive: torch.Tensor
    """Latents active on any token, [S]."""
    l0: torch.Tensor
    """Mean number of active latents of a token, [S]."""
    found: dict[str, torch.Tensor]
    """Concept -> whether a latent stands for it, [S]."""

    def rate(self, *concepts: str) -> float:
        """Share of starts that found all of these concepts."""
        return float(torch.stack([self.found[concept] for concept in concepts]).all(0).double().mean())


def train(
    sparsity: float, *, num_seeds: int = 100, num_latents: int = 20, learning_rate: float = 1e-3, num_steps: int = 2000
) -> Findings:
    """Train all starts at one sparsity weight and look at their latents."""
    x_ND = eight_tokens()
    model = SeededAutoencoders(num_seeds, num_latents)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    for _ in range(num_steps):
        codes_SNF, y_SND = model(x_ND)
        # Means within a seed, summed over seeds: every start has the gradient that it would have alone.
        loss = (y_SND - x_ND).square().mean((1, 2)).sum() + sparsity * codes_SNF.mean((1, 2)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        codes_SNF, y_SND = model(x_ND)
    return examine(codes_SNF, (y_SND - x_ND).square().mean((1, 2)))


def examine(codes_SNF: torch.Tensor, mse_S: torch.Tensor) -> Findings:
    """Which latents are active on exactly the tokens of a concept."""
    active_SNF = codes_SNF > 0.05 * codes_SNF.amax(1, keepdim=True)
    found = {}
    for concept, members in CONCEPTS.items():
        pattern_N = torch.tensor([token in members for token in EIGHT_TOKENS])
        found[concept] = (active_SNF == pattern_N[:, None]).all(1).any(1)
    return Findings(mse_S, active_SNF.any(1).sum(1), active_SNF.sum(2).double().mean(1), found)


def draw(runs: dict[float, Findings], path: Path) -> None:
    """Shares of starts that found each concept, and the number of living latents, over the sparsity weight."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    shares, alive = figure.subplots(1, 2)
    ticks = range(len(runs))
    for name, concepts in {**{one: (one,) for one in CONCEPTS}, "all three": tuple(CONCEPTS)}.items():
        rates = [run.rate(*concepts) for run in runs.values()]
        shares.plot(ticks, rates, marker="o", label=name, color="k" if name == "all three" else None)
    shares.set(ylim=(0, 1.3), yticks=[0, 0.25, 0.5, 0.75, 1], title="share of starts that found it")
    shares.legend(frameon=False, ncols=2, loc="upper center")
    alive.boxplot([run.num_alive.tolist() for run in runs.values()], positions=ticks)
    alive.set(ylim=(0, None), title="latents active on any token")
    for axes in (shares, alive):
        axes.set(xlabel="sparsity weight w", xticks=ticks, xticklabels=[f"{sparsity:g}" for sparsity in runs])
    pictures.save(figure, path)


def main(arguments: Sequence[str]) -> None:
    """A row for each sparsity weight."""
    runs = {}
    print("100 starts, 20 latents, learning rate 0.001, 2000 steps; share of starts that found ...")
    print(f"{'w':>5} {'mse':>9} {'alive':>6} {'L0':>5}   {'   '.join(CONCEPTS)}   all three")
    for sparsity in (0.0, 0.05, 0.1, 0.5, 1.0):
        run = runs[sparsity] = train(sparsity)
        rates = "  ".join(f"{run.rate(concept):>{len(concept) + 1}.2f}" for concept in CONCEPTS)
        figures = f"{run.mse.median():9.1e} {run.num_alive.median():6.0f} {run.l0.median():5.1f}"
        print(f"{sparsity:5.2f} {figures}  {rates}   {run.rate(*CONCEPTS):9.2f}", flush=True)
    if arguments[:1] == ["--plot"]:
        draw(runs, Path(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
