"""A sparse dictionary: named sources are encoded and summed, one sparse code, decoded to named targets.

    z    = x - b_dec                       autoencoders of most kinds, see ``centres_input``; x itself otherwise
    pre  = z W_enc^T + b_enc
    f    = activation(pre)
    y^   = f W_dec + b_dec [+ x W_skip^T]  skip: transcoders that ask for it

Sources (and targets) lie side by side in one row, in the order of the spec, so the sum over sources is one product.
A latent's weights are zero at the sources it does not read and the targets it does not write (``blocks``): an SAE, a
transcoder, a crosscoder and a cross-layer transcoder are this one module. Weights live in *scaled* space: every hook
point is multiplied by its own scalar (``scales``) first. ``join_sources`` and ``split_targets`` are the only doors
between raw activations and that space.

    encoder [F, S], b_enc [F], decoder [F, T], b_dec [T]   always; tied: ``encoder`` is ``decoder``
    skip [T, S]                                            where asked for
    activation.threshold []                                BatchTopK, Matryoshka BatchTopK: above it a latent is on
    activation.log_threshold [F]                           JumpReLU: the logarithm of each latent's threshold
                             [F, targets]                  with a gate for each target, see ``target_gates``
    activation.r_mag [F], activation.b_mag [F]             Gated: magnitude = exp(r_mag) * (pre - b_enc) + b_mag

Letters: B rows, F latents, K active latents, S and T the summed widths of all sources and of all targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from pipeline.dictionaries import blocks
from pipeline.dictionaries.activations.function import ActivationFunction, activation_function
from pipeline.dictionaries.activations.target_gates import TargetGates
from pipeline.dictionaries.codes import SparseCodes
from schemas.dictionary import DictionaryRecord, DictionarySpec
from schemas.errors import HookPointError, SpecError, nearest


class Dictionary(nn.Module):
    """Weights and their meaning; rows of ``encoder`` and of ``decoder`` belong to one latent each.

    Made with zero weights: ``initialise.fill`` starts a training, ``folder.load_dictionary`` reads a trained one.
    """

    encoder: nn.Parameter
    b_enc: nn.Parameter
    decoder: nn.Parameter
    b_dec: nn.Parameter
    skip: nn.Parameter | None

    def __init__(
        self,
        spec: DictionarySpec,
        d_source: Mapping[str, int],
        d_target: Mapping[str, int],
        scales: Mapping[str, float],
        *,
        latents: range | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate the weights.

        ``latents``: in training, those that this rank holds of a dictionary that lies on several; the module is then
        a part that only ``pipeline.training`` knows to use. None: all.

        Raises:
            SpecError: ``d_source`` or ``d_target`` do not name the hook points of the spec in its order.
        """
        super().__init__()
        _require_points(spec, "sources", spec.sources, d_source)
        _require_points(spec, "targets", spec.target_points, d_target)
        self.spec = spec
        self.d_source = dict(d_source)
        self.d_target = dict(d_target)
        self.scales = {point: float(scales[point]) for point in {**d_source, **d_target}}
        self.record: DictionaryRecord | None = None
        self.product_dtype: torch.dtype | None = None
        """Dtype that operands of products are rounded to; set in training (``spec.compute_dtype``), None: none."""
        self.latents = range(spec.num_latents) if latents is None else latents
        self.blocks = blocks.within(blocks.blocks_of(spec, d_source, d_target), self.latents)
        width_source, width_target = sum(d_source.values()), sum(d_target.values())

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, device=device, dtype=dtype))

        decoder = zeros(self.num_latents, width_target)
        self.encoder = decoder if spec.tied else zeros(self.num_latents, width_source)
        self.b_enc = zeros(self.num_latents)
        self.decoder = decoder
        self.b_dec = zeros(width_target)
        self.skip = zeros(width_target, width_source) if spec.skip else None
        self.activation = activation_function(
            spec.activation, self.num_latents, len(d_target), device=device, dtype=dtype
        )

    @property
    def num_latents(self) -> int:
        """F, of those that are held here."""
        return len(self.latents)

    @property
    def centres_input(self) -> bool:
        """``b_dec`` is taken off the input."""
        return self.spec.centres_input

    def shared_parameters(self) -> list[nn.Parameter]:
        """Those that belong to no latent: where several ranks hold a dictionary together, each of them has them."""
        return [self.b_dec] if self.skip is None else [self.b_dec, self.skip]

    def join_sources(self, acts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Raw activations ``hook point -> [B, D]`` of any dtype -> scaled x [B, S] in the dtype of the weights."""
        return self._join(acts, self.d_source)

    def join_targets(self, acts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Raw activations ``hook point -> [B, D]`` of any dtype -> scaled y [B, T] in the dtype of the weights."""
        return self._join(acts, self.d_target)

    def split_targets(self, y_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scaled [B, T] -> raw ``hook point -> [B, D]``."""
        parts = torch.split(y_BT, list(self.d_target.values()), dim=1)
        return {point: part / self.scales[point] for point, part in zip(self.d_target, parts, strict=True)}

    def centred(self, x_BS: torch.Tensor) -> torch.Tensor:
        """What the encoder multiplies: z [B, S]."""
        return x_BS - self.b_dec if self.centres_input else x_BS

    def pre_activations(self, x_BS: torch.Tensor) -> torch.Tensor:
        """[B, F]."""
        z, encoder, b_enc = map(self.operand, (self.centred(x_BS), self.encoder, self.b_enc))
        return blocks.encode(z, encoder, b_enc, self.blocks).to(x_BS.dtype)

    def operand(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a product takes for it, see ``product_dtype``; differentiable.

        On a GPU in that dtype. Elsewhere rounded to it, but held in its own: products of bfloat16 numbers are exact in
        float32, and few processors multiply bfloat16 faster.
        """
        if self.product_dtype is None or self.product_dtype == tensor.dtype:
            return tensor
        rounded = tensor.to(self.product_dtype)
        return rounded if tensor.is_cuda else rounded.to(tensor.dtype)

    def encode(self, x_BS: torch.Tensor) -> SparseCodes | torch.Tensor:
        """Scaled x -> codes, none negative: ``SparseCodes`` of a TopK dictionary, a dense [B, F] of the others."""
        pre_BF = self.pre_activations(x_BS)
        if isinstance(self.activation, TargetGates):
            return self.activation.encode(pre_BF, self.decoder_norms())
        return cast(ActivationFunction, self.activation).encode(pre_BF, self.b_enc)

    def codes_dense(self, x_BS: torch.Tensor) -> torch.Tensor:
        """Scaled x -> codes [B, F]."""
        codes = self.encode(x_BS)
        return codes.dense(self.num_latents) if isinstance(codes, SparseCodes) else codes

    def decode(self, codes: SparseCodes | torch.Tensor, x_BS: torch.Tensor | None = None) -> torch.Tensor:
        """Codes -> scaled y^ [B, T]. ``x_BS`` is what a skip dictionary adds its linear part from.

        Raises:
            SpecError: the dictionary has a skip and ``x_BS`` is not given.
        """
        y_BT = self.written(codes) + self.b_dec
        if self.skip is None:
            return y_BT
        if x_BS is None:
            raise SpecError(f"dictionary {self.spec.name!r} has a skip: decode needs the sources too, pass x_BS")
        return y_BT + x_BS @ self.skip.T

    def written(self, codes: SparseCodes | torch.Tensor) -> torch.Tensor:
        """What the latents held here add to y^, [B, T]; differentiable. With a gate for each target, codes may also be
        those of each of the H targets, [H, B, F]."""
        if isinstance(self.activation, TargetGates):
            return self._written_by_target(self.activation, codes)
        if isinstance(codes, SparseCodes):
            return nn.functional.embedding_bag(codes.indices, self.decoder, per_sample_weights=codes.values, mode="sum")
        return blocks.decode(self.operand(codes), self.operand(self.decoder), self.blocks).to(codes.dtype)

    def _written_by_target(self, gates: TargetGates, codes: SparseCodes | torch.Tensor) -> torch.Tensor:
        if isinstance(codes, SparseCodes):
            codes = codes.dense(self.num_latents)
        of_targets = codes.unbind(0) if codes.ndim == 3 else gates.opened(codes, self.decoder_norms())
        parts = torch.split(self.decoder, list(self.d_target.values()), dim=1)
        products = [
            self.operand(codes_BF) @ self.operand(part_FD) for codes_BF, part_FD in zip(of_targets, parts, strict=True)
        ]
        return torch.cat(products, dim=1).to(codes.dtype)

    def decoder_norms(self) -> torch.Tensor:
        """Norm of each latent's decoder row at each target, [F, number of targets]."""
        parts = torch.split(self.decoder, list(self.d_target.values()), dim=1)
        return torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts], dim=1)

    @torch.no_grad()
    def zero_outside_blocks(self, *, of_gradients: bool = False) -> None:
        """Clear the weights, or their gradients, where no group has a connection."""
        weights = [self.encoder, self.decoder, self.skip]
        encoder, decoder, skip = (
            (weight.grad if of_gradients else weight) if weight is not None else None for weight in weights
        )
        assert encoder is not None
        assert decoder is not None
        if len(self.spec.latent_groups) > 1:
            blocks.zero_outside(self.blocks, encoder_FS=encoder, decoder_FT=decoder, skip_TS=skip)

    def forward(self, x_BS: torch.Tensor) -> torch.Tensor:
        """Scaled x [B, S] -> scaled y^ [B, T]."""
        return self.decode(self.encode(x_BS), x_BS)

    def reconstruct(self, acts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Raw activations of the sources -> raw reconstructions of the targets, in the dtype of the weights."""
        return self.split_targets(self(self.join_sources(acts)))

    def _join(self, acts: Mapping[str, torch.Tensor], widths: Mapping[str, int]) -> torch.Tensor:
        parts = []
        for point in widths:
            if point not in acts:
                raise HookPointError(
                    f"dictionary {self.spec.name!r} needs hook point {point!r}, got {sorted(acts)}"
                    + nearest(point, acts)
                )
            parts.append(acts[point].to(device=self.b_dec.device, dtype=self.b_dec.dtype) * self.scales[point])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _require_points(spec: DictionarySpec, field: str, wanted: list[str], got: Mapping[str, int]) -> None:
    if list(got) != wanted:
        raise SpecError(f"dictionary {spec.name!r}: {field} of the spec are {wanted}, the widths given are {dict(got)}")
