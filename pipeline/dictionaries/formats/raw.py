"""A dictionary as other libraries know them: one source, one target, in the space of the activations themselves.

Ours multiplies every hook point by a scalar s first. Folded into the weights, latents stay what they are:

    s_x x W_enc^T = x (s_x W_enc)^T        centring: s_x x - b_dec = s_x (x - b_dec / s_x)
    y = (f W_dec + b_dec + s_x x W_skip^T) / s_y = f (W_dec / s_y) + b_dec / s_y + x (s_x / s_y W_skip)^T

Whether ``b_dec`` is taken off the input is a matter of ``b_enc``, so every format gets what it computes with:
(x - b_dec) W_enc^T + b_enc = x W_enc^T + (b_enc - W_enc b_dec).

Letters: F latents, S and T widths of source and target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch

from pipeline.dictionaries.activations.batch_topk import BatchTopKActivation
from pipeline.dictionaries.activations.gated import GatedActivation
from pipeline.dictionaries.activations.jumprelu import JumpReluActivation
from pipeline.dictionaries.activations.topk import TopKActivation
from pipeline.dictionaries.dictionary import Dictionary
from schemas.activation import MatryoshkaBatchTopK
from schemas.dictionary import LatentGroup
from schemas.errors import SpecError

Kind = Literal["relu", "topk", "threshold", "jumprelu", "gated"]


@dataclass(frozen=True)
class RawDictionary:
    """Weights in float32 on the CPU, and what makes codes of pre-activations.

    ``relu``: max(0, pre). ``topk``: the ``k`` largest of them. ``threshold``, ``jumprelu``: pre where pre > threshold,
    one for all latents (BatchTopK, trained) or one each, never negative. ``gated``: where pre > 0,
    max(0, exp(r_mag) * (pre - b_enc) + b_mag).
    """

    kind: Kind
    encoder: torch.Tensor
    """[F, S]"""
    b_enc: torch.Tensor
    """[F]"""
    decoder: torch.Tensor
    """[F, T]"""
    b_dec: torch.Tensor
    """[T]"""
    is_transcoder: bool
    centres_input: bool
    """``b_dec`` is taken off the input first; autoencoders only."""
    skip: torch.Tensor | None = None
    """[T, S]"""
    k: int = 0
    """Of ``topk``; of ``threshold`` the mean that it was trained for, 0 where that is not known."""
    threshold: torch.Tensor | None = None
    """[F] of ``threshold`` and ``jumprelu``."""
    r_mag: torch.Tensor | None = None
    """[F]"""
    b_mag: torch.Tensor | None = None
    """[F]"""
    group_sizes: tuple[int, ...] = ()
    """Matryoshka: latents that each prefix adds to the one before."""
    label: str = ""
    """The activation, for messages."""

    @property
    def num_latents(self) -> int:
        """F."""
        return len(self.b_enc)

    @property
    def d_in(self) -> int:
        """S."""
        return self.encoder.shape[1]

    @property
    def d_out(self) -> int:
        """T."""
        return self.decoder.shape[1]

    def centred(self, wanted: bool) -> RawDictionary:
        """The same function, taking ``b_dec`` off its input or not."""
        if self.centres_input == wanted:
            return self
        assert not self.is_transcoder
        shift = self.encoder.double() @ self.b_dec.double() * (1 if wanted else -1)
        b_mag = self.b_mag
        if self.r_mag is not None and b_mag is not None:
            b_mag = (b_mag.double() + self.r_mag.double().exp() * shift).float()
        return replace(self, centres_input=wanted, b_enc=(self.b_enc.double() + shift).float(), b_mag=b_mag)


def raw_of(dictionary: Dictionary) -> RawDictionary:
    """Fold the scales in.

    Raises:
        SpecError: several sources or targets.
    """
    spec = dictionary.spec
    if len(spec.sources) != 1 or len(spec.target_points) != 1:
        raise SpecError(
            f"dictionary {spec.name!r} has {len(spec.sources)} sources and {len(spec.target_points)} targets; this "
            "format holds dictionaries of one source and one target only (a cross-layer or per-layer transcoder: "
            "--format circuit_tracer)"
        )
    return raw_group(dictionary, spec.latent_groups[0], slice(0, spec.num_latents))


def raw_group(dictionary: Dictionary, group: LatentGroup, latents: slice) -> RawDictionary:
    """One group of latents; of several targets, all side by side, with the whole ``b_dec`` of those."""
    spec = dictionary.spec
    columns_S, factors_S = _columns(dictionary.d_source, dictionary.scales, group.sources)
    columns_T, factors_T = _columns(dictionary.d_target, dictionary.scales, group.targets)
    skip = dictionary.skip
    parts = _activation_parts(dictionary, latents)
    return RawDictionary(
        encoder=_float(dictionary.encoder[latents][:, columns_S].double() * factors_S),
        b_enc=_float(dictionary.b_enc[latents]),
        decoder=_float(dictionary.decoder[latents][:, columns_T].double() / factors_T),
        b_dec=_float(dictionary.b_dec[columns_T].double() / factors_T),
        skip=None if skip is None else _float(skip[columns_T][:, columns_S].double() * factors_S / factors_T[:, None]),
        is_transcoder=spec.is_transcoder,
        centres_input=spec.centres_input,
        label=spec.activation.label,
        **parts,
    )


def matryoshka_sizes(prefixes: list[float], num_latents: int) -> tuple[int, ...]:
    """Latents that each prefix adds."""
    ends = sorted({0, *(max(1, round(share * num_latents)) for share in prefixes)})
    return tuple(stop - start for start, stop in pairwise(ends))


def _activation_parts(dictionary: Dictionary, latents: slice) -> dict[str, Any]:
    module, num_latents = dictionary.activation, len(range(*latents.indices(dictionary.num_latents)))
    match module:
        case TopKActivation():
            return {"kind": "topk", "k": module.k}
        case BatchTopKActivation():
            activation = dictionary.spec.activation
            sizes: tuple[int, ...] = ()
            if isinstance(activation, MatryoshkaBatchTopK):
                sizes = matryoshka_sizes(activation.prefixes, num_latents)
            threshold = _float(module.threshold.clamp(min=0).expand(num_latents))
            k = getattr(activation, "k", 0)
            return {"kind": "threshold", "threshold": threshold, "k": k, "group_sizes": sizes}
        case JumpReluActivation():
            return {"kind": "jumprelu", "threshold": _float(module.threshold[latents])}
        case GatedActivation():
            return {"kind": "gated", "r_mag": _float(module.r_mag[latents]), "b_mag": _float(module.b_mag[latents])}
    return {"kind": "relu"}


def _columns(
    widths: Mapping[str, int], scales: Mapping[str, float], points: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of the points, and the factor of each, float64."""
    columns, factors, first = [], [], 0
    for point, width in widths.items():
        if point in points:
            columns.append(torch.arange(first, first + width))
            factors.append(torch.full((width,), scales[point], dtype=torch.float64))
        first += width
    return torch.cat(columns), torch.cat(factors)


def _float(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().float().contiguous().clone()
