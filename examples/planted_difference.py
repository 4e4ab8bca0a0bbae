"""Which latents of a crosscoder over two models are truly one model's own, and which does the penalty make look so?

Two models share 24 features, each has 8 of its own, and of 16 more the second has a lesser copy, 0.3 of the size in the
first. A crosscoder over both models is trained twice on rows of both: with the L1 penalty on the sum of decoder norms
(Lindsey et al. 2024), and as BatchTopK, which has no penalty. A latent is said to be exclusive where one model's part
of its decoder norm is below a tenth. The L1 penalty shrinks the lesser copies away, so that their latents look
exclusive; latent scaling (Minder et al. 2025) tells them from those that are.

    python examples/planted_difference.py             half a minute
    python examples/planted_difference.py 1000        fewer steps
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import torch

from pipeline.analysis import trajectories
from pipeline.analysis.exclusive import latent_scaling
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.synthetic import PlantedDifference
from pipeline.synthetic_training import train_on_samples
from schemas.activation import ActivationSpec, BatchTopK, ReluL1
from schemas.dictionary import DictionarySpec

NUM_LATENTS = 96
ACTIVATIONS: dict[str, ActivationSpec] = {
    "L1": ReluL1(l1_coefficient=0.5),
    "BatchTopK": BatchTopK(k=2, aux_k=32, dead_after_tokens=50_000),
}
"""On average 1.7 features are on in a row."""
EXCLUSIVE_BELOW = 0.1
"""Share of the decoder norm that the other model has at most of a latent that is said to be exclusive."""
_MATCH_COSINE = 0.9


@dataclass(frozen=True)
class Found:
    """What a crosscoder says of the two models."""

    explained_variance: float
    l0: float
    share_by_kind: dict[str, list[float]]
    """Planted kind -> share of the second model in the decoder norm of each latent that found such a feature."""
    exclusive: dict[str, int]
    """Planted kind -> latents that look exclusive; ``first`` and ``second`` are right, the others wrong."""
    confirmed: dict[str, int]
    """The same, of those that latent scaling confirms."""

    @property
    def precision(self) -> float:
        """Share of the latents that look exclusive which found an exclusive feature."""
        return _precision(self.exclusive)

    @property
    def precision_confirmed(self) -> float:
        """The same after the control."""
        return _precision(self.confirmed)


def train(
    data: PlantedDifference,
    activation: ActivationSpec,
    *,
    num_latents: int = NUM_LATENTS,
    num_steps: int = 3000,
    batch_rows: int = 512,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Dictionary:
    """A crosscoder over both models, on fresh rows in every step."""
    points = list(data.POINTS)
    widths = dict.fromkeys(points, data.directions.shape[2])
    spec = DictionarySpec.model_validate(
        {
            "name": "crosscoder",
            "sources": points,
            "num_latents": num_latents,
            "activation": activation.model_dump(),
            "learning_rate": learning_rate,
            "seed": seed,
        }
    )
    # No scaling, so that shares of norms can be compared with the planted ones.
    return train_on_samples(spec, data.sample, widths, num_steps=num_steps, batch_rows=batch_rows)


@torch.no_grad()
def examine(dictionary: Dictionary, data: PlantedDifference, *, num_rows: int = 20_000) -> Found:
    """Match latents with features by direction, look at their shares of norms, and ask the control."""
    acts = data.sample(num_rows)
    x_BS = dictionary.join_sources(acts)
    codes_BF = dictionary.codes_dense(x_BS)
    error = (dictionary.decode(codes_BF) - x_BS).square().sum()
    share_F = trajectories.relative_norm(trajectories.norms(trajectories.decoder_parts(dictionary)), 0, 1)
    kind_F = _kinds(dictionary, data, share_F)
    looks_F = torch.minimum(share_F, 1 - share_F) < EXCLUSIVE_BELOW
    confirmed_F = looks_F & _is_confirmed(dictionary, acts, share_F, looks_F)
    kinds = dict.fromkeys(data.kind)
    return Found(
        explained_variance=1 - float(error / (x_BS - x_BS.mean(0)).square().sum()),
        l0=float((codes_BF > 0).sum(1).double().mean()),
        share_by_kind={kind: share_F[[one == kind for one in kind_F]].tolist() for kind in kinds},
        exclusive={kind: _count(kind_F, kind, looks_F) for kind in kinds},
        confirmed={kind: _count(kind_F, kind, confirmed_F) for kind in kinds},
    )


def _kinds(dictionary: Dictionary, data: PlantedDifference, share_F: torch.Tensor) -> list[str]:
    """The kind of the feature that each latent found, "" of one that found none: by the cosine of directions at the
    model where the latent has more of its norm."""
    parts = torch.stack([*trajectories.decoder_parts(dictionary).values()])
    stronger_F = (share_F.nan_to_num() > 0.5).long()
    own_FD = torch.nn.functional.normalize(parts[stronger_F, torch.arange(len(share_F))], dim=1)
    planted_2GD = torch.nn.functional.normalize(data.directions, dim=2)
    cosine_FG = torch.linalg.vecdot(own_FD[:, None], planted_2GD[stronger_F])
    best = cosine_FG.max(dim=1)
    return [
        data.kind[feature] if cosine > _MATCH_COSINE else ""
        for cosine, feature in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _is_confirmed(
    dictionary: Dictionary, acts: dict[str, torch.Tensor], share_F: torch.Tensor, looks_F: torch.Tensor
) -> torch.Tensor:
    """[F] bool: latent scaling finds nothing of the latent in the model that seems to lack it."""
    first, second = dictionary.d_target
    confirmed_F = torch.zeros_like(looks_F)
    for own, other, is_here_F in ((first, second, share_F < 0.5), (second, first, share_F > 0.5)):
        latents = (looks_F & is_here_F).nonzero().squeeze(1)
        if len(latents):
            found = latent_scaling(dictionary, [acts], latents, own=own, other=other)
            confirmed_F[latents] = found.is_exclusive()
    return confirmed_F


def _count(kind_F: list[str], kind: str, chosen_F: torch.Tensor) -> int:
    return sum(one == kind and chosen for one, chosen in zip(kind_F, chosen_F.tolist(), strict=True))


def _precision(counts: dict[str, int]) -> float:
    total = sum(counts.values())
    return (counts["first"] + counts["second"]) / total if total else float("nan")


def main(num_steps: int) -> None:
    """Train both and print what was found."""
    for name, activation in ACTIVATIONS.items():
        started = time.perf_counter()
        data = PlantedDifference()
        found = examine(train(data, activation, num_steps=num_steps), data)
        print(f"{name}: explained variance {found.explained_variance:.3f}, L0 {found.l0:.2f}")
        print("  found a feature   latents   share of the second model   look exclusive   confirmed")
        for kind, shares in found.share_by_kind.items():
            span = f"{min(shares):.2f} to {max(shares):.2f}" if shares else "-"
            counts = found.exclusive[kind], found.confirmed[kind]
            print(f"  {kind:15} {len(shares):9} {span:>27} {counts[0]:16} {counts[1]:11}")
        print(f"  exclusive are {found.precision:.0%} of these, and {found.precision_confirmed:.0%} of the confirmed")
        print(f"  {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
