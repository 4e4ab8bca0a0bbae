"""Does a crosscoder over training snapshots find when features appear, and which ones turn?

48 features in 32 channels; each appears at a known one of 8 snapshots, a quarter of them are there throughout but take
another direction at the fifth. A crosscoder with the L1 penalty on the sum of decoder norms (Lindsey et al. 2024) is
trained on rows of all snapshots at once; its decoder norms tell the onsets, its directions the turns.

    python examples/planted_onsets.py             half a minute
    python examples/planted_onsets.py 1000        fewer steps
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import torch

from pipeline.analysis import trajectories
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.synthetic import PlantedOnsets
from pipeline.synthetic_training import train_on_samples
from schemas.activation import ReluL1
from schemas.dictionary import DictionarySpec

NUM_LATENTS = 96


@dataclass(frozen=True)
class Found:
    """What the crosscoder says of the planted features."""

    explained_variance: float
    l0: float
    num_matched: int
    """Features that a latent's direction matches at the last snapshot with a cosine above 0.9; of several such latents
    the one of greatest norms counts."""
    num_exact_onsets: int
    """Of these, features whose latent has its onset at the planted snapshot."""
    norm_before_onset: float
    """Median over matched features and snapshots before the onset, as a share of the latent's greatest norm."""
    cosine_rotated: float
    """Between first and last direction, mean over the features that turned; ``cosine_planted`` is the truth."""
    cosine_planted: float
    cosine_unrotated: float
    """The same between onset and last snapshot, over the other features."""


def train(data: PlantedOnsets, *, num_steps: int = 5000, batch_rows: int = 512, seed: int = 0) -> Dictionary:
    """A crosscoder over all snapshots, on fresh rows in every step."""
    width = data.directions.shape[2]
    spec = DictionarySpec(
        name="crosscoder",
        sources=data.names,
        num_latents=NUM_LATENTS,
        activation=ReluL1(l1_coefficient=0.2),
        learning_rate=2e-3,
        seed=seed,
    )
    widths = dict.fromkeys(data.names, width)
    # No scaling: a snapshot without features yet must not be blown up to the size of a full one.
    return train_on_samples(spec, data.sample, widths, num_steps=num_steps, batch_rows=batch_rows)


@torch.no_grad()
def examine(dictionary: Dictionary, data: PlantedOnsets, *, num_rows: int = 20_000) -> Found:
    """Match latents with features by their direction at the last snapshot, then compare their histories."""
    acts = data.sample(num_rows)
    x_BS = dictionary.join_sources(acts)
    codes_BF = dictionary.codes_dense(x_BS)
    error = (dictionary.decode(codes_BF) - x_BS).square().sum()
    parts = trajectories.decoder_parts(dictionary)
    last_FD = torch.nn.functional.normalize(parts[data.names[-1]], dim=1)
    matches_GF = data.directions[-1] @ last_FD.T > 0.9
    is_matched_G = matches_GF.any(1)
    norms_FH = trajectories.norms(parts)
    # Where latents share a feature, that which carries most of it.
    latent_G = (matches_GF * norms_FH.sum(1)).argmax(dim=1)
    norms_GH = norms_FH[latent_G]
    share_GH = norms_GH / norms_GH.amax(dim=1, keepdim=True)
    before_GH = torch.arange(len(data.names)) < data.onset[:, None]
    rotation_GHH = trajectories.rotation(parts, latent_G)
    since_onset_G = rotation_GHH[torch.arange(len(latent_G)), data.onset, -1]
    planted_G = (data.directions[0] * data.directions[-1]).sum(1)
    return Found(
        explained_variance=1 - float(error / (x_BS - x_BS.mean(0)).square().sum()),
        l0=float((codes_BF > 0).sum(1).double().mean()),
        num_matched=int(is_matched_G.sum()),
        num_exact_onsets=int((is_matched_G & (trajectories.onset(norms_GH) == data.onset)).sum()),
        norm_before_onset=float(share_GH[before_GH & is_matched_G[:, None]].median()),
        cosine_rotated=float(since_onset_G[data.is_rotated].mean()),
        cosine_planted=float(planted_G[data.is_rotated].mean()),
        cosine_unrotated=float(since_onset_G[~data.is_rotated].mean()),
    )


def main(num_steps: int) -> None:
    """Train and print what was found."""
    started = time.perf_counter()
    data = PlantedOnsets()
    found = examine(train(data, num_steps=num_steps), data)
    print(f"explained variance {found.explained_variance:.4f}, L0 {found.l0:.2f}")
    print(f"features matched {found.num_matched} of {len(data.onset)}, onsets exact {found.num_exact_onsets}")
    print(f"median norm before the onset {found.norm_before_onset:.3f} of the greatest")
    print(f"cosine of first and last direction: turned {found.cosine_rotated:.3f} (planted {found.cosine_planted:.3f})")
    print(f"cosine of onset and last direction, others: {found.cosine_unrotated:.3f}")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
