"""How a latent of a crosscoder lives over its targets (layers, models or snapshots of a training), from its weights.

    n_i(k)      = ||W_dec,i^k||                       decoder norm, in scaled space, so that targets compare
    PSI_i       = argmax_k n_i(k)                     Peak Snapshot Index (Ge et al. 2025, arXiv 2509.17196)
    onset_i     = first k with n_i(k) > max_k n_i(k) / 2
    rotation_i  = cos(W_dec,i^j, W_dec,i^k)
    D_i^k       = ||W_i||^2 / sum_j (W_i/||W_i|| . W_j)^2     feature dimensionality (Elhage et al. 2022), sum <= D

The index of a peak is arbitrary where a trajectory is flat: ties within 1 % of the maximum go to the earliest target,
and the onset is to be read beside it.

Letters: F latents, H targets, D width of a target.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pipeline.dictionaries.dictionary import Dictionary
from schemas.errors import SpecError

NO_NORM = 1e-8
"""A decoder row below this norm is no direction; its cosines are 0."""


def decoder_parts(dictionary: Dictionary) -> dict[str, torch.Tensor]:
    """target -> decoder rows [F, D] in scaled space, views of the weights, in the order of the spec."""
    parts = torch.split(dictionary.decoder.detach(), list(dictionary.d_target.values()), dim=1)
    return dict(zip(dictionary.d_target, parts, strict=True))


def norms(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Decoder norms [F, H]."""
    return torch.stack([torch.linalg.vector_norm(part_FD, dim=1) for part_FD in parts.values()], dim=1)


def peak_index(norms_FH: torch.Tensor, *, tolerance: float = 0.01) -> torch.Tensor:
    """Peak Snapshot Index [F] int64 from 0, the earliest within ``tolerance`` of the maximum; -1 without any norm."""
    return _first(norms_FH, norms_FH >= (1 - tolerance) * _greatest(norms_FH))


def onset(norms_FH: torch.Tensor, *, share: float = 0.5) -> torch.Tensor:
    """First target [F] int64 from 0 whose norm exceeds ``share`` of the greatest; -1 without any norm."""
    return _first(norms_FH, norms_FH > share * _greatest(norms_FH))


def mean_trajectories(norms_FH: torch.Tensor) -> torch.Tensor:
    """Decoder norms as shares of each latent's greatest, averaged over the latents of each onset, [H onsets, H]
    float64; NaN for an onset that no latent has."""
    num_targets = norms_FH.shape[1]
    onset_F = onset(norms_FH)
    alive_F = onset_F >= 0
    share_FH = (norms_FH[alive_F] / _greatest(norms_FH[alive_F])).double()
    total_HH = share_FH.new_zeros(num_targets, num_targets).index_add_(0, onset_F[alive_F], share_FH)
    return total_HH / torch.bincount(onset_F[alive_F], minlength=num_targets)[:, None]


def rotation(parts: Mapping[str, torch.Tensor], latents: torch.Tensor | None = None) -> torch.Tensor:
    """Cosines [F, H, H] between a latent's directions at any two targets; 0 where either norm is below ``NO_NORM``.

    Args:
        parts: Of equal widths.
        latents: int64, those wanted; None: all, which for many targets takes F * H * H numbers.

    Raises:
        SpecError: widths differ: directions of different spaces have no angle.
    """
    widths = {target: part.shape[1] for target, part in parts.items()}
    if len(set(widths.values())) > 1:
        raise SpecError(f"directions can only be compared between targets of one width; got {widths}")
    stacked_FHD = torch.stack([part if latents is None else part[latents] for part in parts.values()], dim=1).float()
    norms_FH = torch.linalg.vector_norm(stacked_FHD, dim=2)
    unit_FHD = stacked_FHD / norms_FH.clamp(min=NO_NORM)[:, :, None]
    unit_FHD[norms_FH < NO_NORM] = 0
    cosines_FHH: torch.Tensor = unit_FHD @ unit_FHD.transpose(1, 2)
    return cosines_FHH


def mean_rotation(parts: Mapping[str, torch.Tensor], *, share: float = 0.5, block: int = 4096) -> torch.Tensor:
    """Cosines [H, H] averaged over the latents that live at both targets (norm above ``share`` of their greatest).

    NaN where no latent does.
    """
    num_latents = next(iter(parts.values())).shape[0]
    norms_FH = norms(parts)
    alive_FH = (norms_FH > share * _greatest(norms_FH)) & (norms_FH >= NO_NORM)
    total_HH = norms_FH.new_zeros(len(parts), len(parts), dtype=torch.float64)
    count_HH = torch.zeros_like(total_HH)
    for latents in torch.split(torch.arange(num_latents, device=norms_FH.device), block):
        both_FHH = alive_FH[latents, :, None] & alive_FH[latents, None, :]
        total_HH += (rotation(parts, latents) * both_FHH).sum(0, dtype=torch.float64)
        count_HH += both_FHH.sum(0)
    return total_HH / count_HH


def dimensionalities(rows_FD: torch.Tensor) -> torch.Tensor:
    """D_i of each row [F] float64; 0 for a row without a norm. Their sum is at most D for any rows.

    Sum_j (w . W_j)^2 = w^T (W^T W) w, so memory is D * D and not F * F.
    """
    rows_FD = rows_FD.double()
    gram_DD = rows_FD.T @ rows_FD
    norms_F = torch.linalg.vector_norm(rows_FD, dim=1)
    unit_FD = rows_FD / norms_F.clamp(min=NO_NORM)[:, None]
    interference_F = torch.linalg.vecdot(unit_FD @ gram_DD, unit_FD)
    return torch.where(norms_F < NO_NORM, 0.0, norms_F.square() / interference_F.clamp(min=NO_NORM**2))


def relative_norm(norms_FH: torch.Tensor, first: int, second: int) -> torch.Tensor:
    """||W^second|| / (||W^first|| + ||W^second||), [F]; 0 and 1: exclusive, 1/2: shared (Lindsey et al. 2024).

    NaN for a latent that neither target has.
    """
    both_F = norms_FH[:, first] + norms_FH[:, second]
    return torch.where(both_F < NO_NORM, torch.nan, norms_FH[:, second] / both_F)


def _greatest(norms_FH: torch.Tensor) -> torch.Tensor:
    return norms_FH.amax(dim=1, keepdim=True)


def _first(norms_FH: torch.Tensor, is_wanted_FH: torch.Tensor) -> torch.Tensor:
    found_F = is_wanted_FH.int().argmax(dim=1)
    return torch.where(_greatest(norms_FH)[:, 0] < NO_NORM, -1, found_F)
