"""Is a latent that one model's decoder lacks truly missing in that model? Latent scaling (Minder et al. 2025,
arXiv 2504.02922).

A sparsity penalty can make a shared latent look exclusive: it shrinks the weaker of two decoder rows to 0 (complete
shrinkage), or splits a shared concept into two exclusive latents (latent decoupling). The control asks how much of the
latent's direction at the target that has it (``own``) the other target's rows hold. With f its code, d its direction
and y what is explained, in scaled space,

    beta(y)  = argmin_b sum_rows ||b f d - y||^2 = sum f <d, y> / (||d||^2 sum f^2)
    nu_error = beta(e_other) / beta(e_own + f d)    e: what reconstruction leaves; near 1: the other has it
    nu_recon = beta(r_other) / beta(r_own)          r: reconstruction without this latent's own part at ``other``

``nu_error`` high tells of complete shrinkage, ``nu_recon`` high of latent decoupling; a latent that is truly exclusive
has both near 0.

Letters: B rows, F latents, G examined latents, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from pipeline.analysis.trajectories import NO_NORM, decoder_parts
from pipeline.dictionaries.activations.target_gates import TargetGates
from pipeline.dictionaries.dictionary import Dictionary
from schemas.errors import HookPointError, SpecError, nearest


@dataclass(frozen=True)
class LatentScaling:
    """Of each examined latent [G], float64; NaN for a latent that never fired."""

    nu_error: torch.Tensor
    nu_reconstruction: torch.Tensor
    num_rows: int

    def is_exclusive(self, *, error_below: float = 0.2, reconstruction_below: float = 0.5) -> torch.Tensor:
        """[G] bool: both ratios are small. The bounds are those of the paper."""
        return (self.nu_error < error_below) & (self.nu_reconstruction < reconstruction_below)


@torch.no_grad()
def latent_scaling(
    dictionary: Dictionary,
    batches: Iterable[Mapping[str, torch.Tensor]],
    latents: torch.Tensor,
    *,
    own: str,
    other: str,
) -> LatentScaling:
    """Measure ``latents`` (int64 [G]), which live at the target ``own``, on rows of raw activations.

    Raises:
        HookPointError: ``own`` or ``other`` is no target.
        SpecError: the widths of the two targets differ, or each target has a gate of its own.
    """
    if isinstance(dictionary.activation, TargetGates):
        raise SpecError(
            f"latent scaling compares what one code writes at two targets; dictionary {dictionary.spec.name!r} has a "
            "gate for each, and so two codes: train it with activation.gate: shared"
        )
    parts = decoder_parts(dictionary)
    for target in (own, other):
        if target not in parts:
            raise HookPointError(f"{target!r} is no target of this dictionary{nearest(target, parts)}: {list(parts)}")
    if parts[own].shape[1] != parts[other].shape[1]:
        raise SpecError(
            f"latent scaling compares rows of one width; {own} has {parts[own].shape[1]}, {other} "
            f"{parts[other].shape[1]}"
        )
    own_GD, other_GD = parts[own][latents].double(), parts[other][latents].double()
    sums = _Sums(own_GD, other_GD)
    num_rows = 0
    for acts in batches:
        x_BS, y_BT = dictionary.join_sources(acts), dictionary.join_targets(acts)
        codes = dictionary.codes_dense(x_BS)
        reconstruction = _split(dictionary, dictionary.decode(codes, x_BS))
        truth = _split(dictionary, y_BT)
        sums.add(codes[:, latents].double(), truth[own], truth[other], reconstruction[own], reconstruction[other])
        num_rows += len(x_BS)
    return LatentScaling(*sums.ratios(), num_rows)


def _split(dictionary: Dictionary, y_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    parts = torch.split(y_BT.double(), list(dictionary.d_target.values()), dim=1)
    return dict(zip(dictionary.d_target, parts, strict=True))


class _Sums:
    """sum f <d, y> for the four y, each [G]; the common denominator cancels in the ratios but for sum f^2 = 0."""

    def __init__(self, own_GD: torch.Tensor, other_GD: torch.Tensor) -> None:
        self._own_GD, self._other_GD = own_GD, other_GD
        self._own_square_G = own_GD.square().sum(1)
        self._overlap_G = torch.linalg.vecdot(own_GD, other_GD)
        zeros = torch.zeros(len(own_GD), dtype=torch.float64, device=own_GD.device)
        self._error_own, self._error_other = zeros.clone(), zeros.clone()
        self._recon_own, self._recon_other = zeros.clone(), zeros.clone()
        self._code_square = zeros.clone()

    def add(
        self,
        codes_BG: torch.Tensor,
        own_BD: torch.Tensor,
        other_BD: torch.Tensor,
        recon_own_BD: torch.Tensor,
        recon_other_BD: torch.Tensor,
    ) -> None:
        square_G = codes_BG.square().sum(0)
        self._code_square += square_G
        # The latent's own part is put back into the error, and kept in the reconstruction, of the target that has it.
        self._error_own += self._projected(codes_BG, own_BD - recon_own_BD) + square_G * self._own_square_G
        self._recon_own += self._projected(codes_BG, recon_own_BD)
        # At the other target its part, small as it is, is taken out of both.
        own_part_G = square_G * self._overlap_G
        self._error_other += self._projected(codes_BG, other_BD - recon_other_BD) + own_part_G
        self._recon_other += self._projected(codes_BG, recon_other_BD) - own_part_G

    def ratios(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._ratio(self._error_other, self._error_own), self._ratio(self._recon_other, self._recon_own)

    def _projected(self, codes_BG: torch.Tensor, y_BD: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = torch.linalg.vecdot(codes_BG.T @ y_BD, self._own_GD)
        return projected

    def _ratio(self, above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
        return torch.where((self._code_square > 0) & (below.abs() > NO_NORM), above / below, torch.nan)
