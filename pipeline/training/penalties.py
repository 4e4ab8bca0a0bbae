"""Sparsity penalties of codes, weighted by decoder norms; see ``schemas.penalty`` for what each is.

Codes are [B, F], or [N, B, F]: those of each target, where they differ (``target_gates``).

Letters: B rows, F latents, N norms of a latent (one for each target, or one).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.objective import StepFacts
from pipeline.training.schedule import ramp
from schemas.penalty import DecoderNorms, Tanh, TanhQuad


class Penalty(Protocol):
    """A function of dense codes."""

    def prepare(self, codes: Iterator[torch.Tensor], facts: StepFacts) -> None:
        """See ``dense.Terms``, but with codes."""
        ...

    def of_rows(self, codes: torch.Tensor, facts: StepFacts) -> torch.Tensor:
        """[B] with its coefficient, differentiable."""
        ...


def norms(dictionary: Dictionary, mode: DecoderNorms) -> torch.Tensor:
    """[F, N], differentiable."""
    if mode == "per_target":
        return dictionary.decoder_norms()
    norms_F: torch.Tensor = torch.linalg.vector_norm(dictionary.decoder, dim=1)
    return norms_F[:, None]


class TanhPenalty:
    """lambda * sum_i sum_t tanh(c f_i n_i^t)."""

    def __init__(self, dictionary: Dictionary, spec: Tanh) -> None:
        self._dictionary = dictionary
        self._spec = spec

    def prepare(self, codes: Iterator[torch.Tensor], facts: StepFacts) -> None:
        """A row's penalty depends on the row alone."""

    def of_rows(self, codes: torch.Tensor, facts: StepFacts) -> torch.Tensor:
        """See ``Penalty``."""
        weight = self._spec.coefficient * ramp(self._spec.warmup_fraction, facts.progress)
        return weight * _tanh(codes, norms(self._dictionary, self._spec.decoder_norms), self._spec.scale).sum(1)


class TanhQuadPenalty:
    """lambda * N * sum_i p_i (1 + p_i / s), p_i the mean over rows of the global batch and norms of tanh(c f_i n_i).

    p_i is found before there are gradients; the gradient of the sum is then that of
    lambda * sum over rows, i and norms of tanh(c f_i n_i) (1 + 2 p_i / s) / rows, with p_i held constant.
    """

    def __init__(self, dictionary: Dictionary, spec: TanhQuad) -> None:
        self._dictionary = dictionary
        self._spec = spec
        self._mean_F = torch.zeros(dictionary.num_latents, dtype=torch.float64, device=dictionary.b_dec.device)

    def prepare(self, codes: Iterator[torch.Tensor], facts: StepFacts) -> None:
        """Find p."""
        norms_FN = norms(self._dictionary, self._spec.decoder_norms)
        self._mean_F.zero_()
        for part in codes:
            self._mean_F += _tanh(part, norms_FN, self._spec.scale).sum(0, dtype=torch.float64)
        facts.world.rows.all_reduce_sum(self._mean_F)
        self._mean_F /= facts.num_rows * norms_FN.shape[1]

    def of_rows(self, codes: torch.Tensor, facts: StepFacts) -> torch.Tensor:
        """See ``Penalty``."""
        weight = self._spec.coefficient * ramp(self._spec.warmup_fraction, facts.progress)
        on_BF = _tanh(codes, norms(self._dictionary, self._spec.decoder_norms), self._spec.scale)
        share_F = (self._mean_F / self._spec.frequency).to(on_BF.dtype)
        value_B = on_BF.detach() @ (1 + share_F)
        slope_B = on_BF @ (1 + 2 * share_F)
        return weight * (slope_B - slope_B.detach() + value_B)


def penalty_of(dictionary: Dictionary, spec: Tanh | TanhQuad) -> Penalty:
    """The penalty of a spec."""
    return TanhQuadPenalty(dictionary, spec) if isinstance(spec, TanhQuad) else TanhPenalty(dictionary, spec)


def _tanh(codes: torch.Tensor, norms_FN: torch.Tensor, scale: float) -> torch.Tensor:
    """sum over the norms of tanh(c f n), [B, F]."""
    of_norms = codes.unbind(0) if codes.ndim == 3 else [codes] * norms_FN.shape[1]
    pairs = zip(of_norms, norms_FN.unbind(1), strict=True)
    parts = [torch.tanh(scale * codes_BF * norms_F) for codes_BF, norms_F in pairs]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
