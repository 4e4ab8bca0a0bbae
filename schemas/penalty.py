"""Sparsity penalties that an activation function can be trained with.

f is the code of a row, n_i^t the norm of latent i's decoder row at target t. Rows are scaled to a mean norm of
sqrt(d_model), so a squared error is of the order of d_model.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from schemas.fields import Spec

Fraction = Annotated[float, Field(ge=0, le=1)]
DecoderNorms = Literal["per_target", "concatenated"]


class L0(Spec):
    """Number of active latents (Rajamanoharan et al. 2024, arXiv 2407.14435). Moves thresholds alone."""

    kind: Literal["l0"] = "l0"
    """Discriminator."""
    coefficient: PositiveFloat = 0.3
    """Weight lambda of sum_i 1[f_i > 0]. That paper scales rows to norm 1: its lambda is this one / d_model."""
    warmup_fraction: Fraction = 0.1
    """Share of all steps over which lambda rises linearly from 0."""


class Tanh(Spec):
    """sum_i sum_t tanh(c f_i n_i^t): near L1 for small codes, near a count for large ones (Anthropic, January 2025
    update; for cross-layer transcoders Ameisen et al. 2025, which takes the norm over all targets together)."""

    kind: Literal["tanh"] = "tanh"
    """Discriminator."""
    coefficient: PositiveFloat = 20.0
    """Weight lambda."""
    scale: PositiveFloat = 4.0
    """c."""
    decoder_norms: DecoderNorms = "per_target"
    """``per_target``: a sum over targets. ``concatenated``: n_i is the norm of the latent's whole decoder row."""
    warmup_fraction: Fraction = 1.0
    """Share of all steps over which lambda rises linearly from 0."""


class TanhQuad(Spec):
    """T sum_i p_i (1 + p_i / s), p_i the mean of tanh(c f_i n_i^t) over the rows of the global batch and the T targets:
    latents that are on more often than s are charged quadratically (Ge et al. 2025, arXiv 2509.17196, their code)."""

    kind: Literal["tanh_quad"] = "tanh_quad"
    """Discriminator."""
    coefficient: PositiveFloat = 0.3
    """Weight lambda. Their loss is a mean over targets, ours a sum: the factor T keeps their values."""
    scale: PositiveFloat = 4.0
    """c."""
    frequency: PositiveFloat = 0.01
    """s."""
    decoder_norms: DecoderNorms = "per_target"
    """As in Tanh; with ``concatenated`` T is 1."""
    warmup_fraction: Fraction = 0.1
    """Share of all steps over which lambda rises linearly from 0."""
