"""The figures of a dictionary with several targets, from its weights alone, as plain data for a report."""

from __future__ import annotations

import math
from typing import Any

import torch

from pipeline.analysis import trajectories
from pipeline.dictionaries.dictionary import Dictionary

NUM_BINS = 40
"""Of the histogram of relative norms."""


def crosscoder_figures(dictionary: Dictionary) -> dict[str, Any] | None:
    """JSON values; None for a dictionary of one target. Lists have one entry a target, in the order of the spec.

    ``mean_norm``: decoder norm averaged over latents. ``peaks``, ``onsets``: latents that have theirs there.
    ``without_norm``: latents whose rows are all zero. ``dimensionality`` and ``width``: sum of the latents' feature
    dimensionalities, and its bound. ``rotation``: mean cosines, see ``trajectories.mean_rotation``, None where no
    latent lives at both; absent where widths differ. ``trajectories``: see ``trajectories.mean_trajectories``, an entry
    for each onset, None where no latent has it. ``relative_norm``: of two targets, counts of the second's share.
    """
    parts = trajectories.decoder_parts(dictionary)
    if len(parts) < 2:
        return None
    norms_FH = trajectories.norms(parts)
    peak_F, onset_F = trajectories.peak_index(norms_FH), trajectories.onset(norms_FH)
    figures: dict[str, Any] = {
        "targets": list(parts),
        "mean_norm": norms_FH.mean(0).tolist(),
        "peaks": _counts(peak_F, len(parts)),
        "onsets": _counts(onset_F, len(parts)),
        "trajectories": [
            None if line_H.isnan().any() else line_H.tolist() for line_H in trajectories.mean_trajectories(norms_FH)
        ],
        "without_norm": int((peak_F < 0).sum()),
        "dimensionality": [float(trajectories.dimensionalities(part).sum()) for part in parts.values()],
        "width": [part.shape[1] for part in parts.values()],
    }
    if len(set(figures["width"])) == 1:
        rows = trajectories.mean_rotation(parts).tolist()
        figures["rotation"] = [[None if math.isnan(value) else value for value in row] for row in rows]
    if len(parts) == 2:
        share_F = trajectories.relative_norm(norms_FH, 0, 1)
        counts = torch.histc(share_F[~share_F.isnan()].float(), NUM_BINS, 0.0, 1.0)
        figures["relative_norm"] = counts.long().tolist()
    return figures


def _counts(index_F: torch.Tensor, num_targets: int) -> list[int]:
    return torch.bincount(index_F[index_F >= 0], minlength=num_targets).tolist()
