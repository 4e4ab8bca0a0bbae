"""Sparse dictionaries: what a train job is asked for, and what a saved dictionary says of itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from schemas.activation import Activation, JumpRelu, MatryoshkaBatchTopK, ReluL1UnitNorm, TopK
from schemas.end_to_end import EndToEnd
from schemas.fields import Name, SourcePoint, Spec
from schemas.optimiser import Adam, Optimiser

WeightName = Literal["encoder", "b_enc", "decoder", "b_dec", "skip", "activation"]


class LatentGroup(Spec):
    """Neighbouring latents that read some of the sources and write some of the targets, and no others."""

    num_latents: PositiveInt
    """Latents of the group."""
    sources: Annotated[list[SourcePoint], Field(min_length=1)]
    """Hook points that they read, out of the dictionary's sources."""
    targets: Annotated[list[SourcePoint], Field(min_length=1)]
    """Hook points that they write, out of the dictionary's targets."""


class DictionarySpec(Spec):
    """One dictionary to train. SAE: one source, which is the target. Crosscoder: several sources, which are the
    targets. Transcoder: other targets, optional skip. Cross-layer transcoder: ``groups: cross_layer``."""

    name: Name
    """Folder name of the result."""
    sources: Annotated[list[SourcePoint], Field(min_length=1)]
    """Hook points that are encoded (and summed); ``NAME/HOOK`` where the job reads several stores."""
    targets: list[SourcePoint] = []
    """Hook points that are reconstructed; empty: the sources."""
    num_latents: PositiveInt
    """Size of the dictionary."""
    activation: Activation = TopK()
    """Activation function and its losses."""
    groups: Literal["one", "per_layer", "cross_layer"] | list[LatentGroup] = "one"
    """Which latents read and write what. ``one``: all read all sources and write all targets. ``per_layer``: as many
    groups as sources, group i reads source i and writes target i. ``cross_layer``: it writes target i and all after it,
    so list sources and targets in the order of the layers. Or a list of groups of your own."""
    skip: bool = False
    """Transcoders: add a linear map from sources to targets, ``W_skip``; only between those that a group joins."""
    tied: bool = False
    """Autoencoders: the encoder is the decoder transposed, one matrix (Cunningham et al. 2023, arXiv 2309.08600)."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate. The default suits TopK with about 4,600 latents under Adam; lower it as 1/sqrt(num_latents).
    Signum moves every weight by all of it and wants less."""
    learning_rate_multiples: dict[WeightName, PositiveFloat] = {}
    """What the rate of some weights is multiplied by. A decoder of unit norm learns well at several times the rate at
    which an encoder loses latents: ``{decoder: 6}``. ``activation``: thresholds and all else that an activation
    function trains."""
    optimiser: Optimiser = Adam()
    """What moves the weights."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the operands of the products with the encoder, and of those with the decoder where codes are dense;
    sums are float32, and so are weights, moments and gradients. ``bfloat16`` is for GPUs, whose matrix units it needs:
    on processors without such units it is no faster. Codes are rounded: look at the held-out FVU of both."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights."""
    end_to_end: EndToEnd | None = None
    """Autoencoders and transcoders of one target: a further loss through the rest of the model; None: no such."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        activation = self.activation
        for field, points in (("sources", self.sources), ("targets", self.targets)):
            if len(set(points)) != len(points):
                raise ValueError(f"{field} names a hook point twice: {points}")
        wanted = {"k": getattr(activation, "k", 0), "multi_k": getattr(activation, "multi_k", 0)}
        for field, k in wanted.items():
            if k > self.num_latents:
                raise ValueError(f"activation.{field} ({k}) is larger than num_latents ({self.num_latents})")
        if self.skip and not self.is_transcoder:
            raise ValueError("skip needs targets other than the sources: on an SAE it could copy its input")
        if self.tied and self.is_transcoder:
            raise ValueError("tied needs targets that are the sources: a transcoder's encoder reads another space")
        if self.tied and "decoder" in self.learning_rate_multiples:
            raise ValueError("learning_rate_multiples: tied has one matrix, whose multiple is that of encoder")
        if self.tied and self.groups == "cross_layer":
            raise ValueError("tied needs latents that write what they read: cross_layer latents write more")
        if isinstance(activation, MatryoshkaBatchTopK) and self.groups != "one":
            raise ValueError("matryoshka_batch_topk needs groups: one: its prefixes run over all latents")
        if isinstance(activation, ReluL1UnitNorm) and activation.resample_at and not self._is_plain_autoencoder:
            raise ValueError(
                "resample_at restarts latents at badly reconstructed rows, for an autoencoder with groups: one only; "
                "set activation.resample_at: []"
            )
        self._require_groups()
        self._require_gates()
        self._require_one_target()
        return self

    def _require_gates(self) -> None:
        if not isinstance(self.activation, JumpRelu) or self.activation.gate == "shared":
            return
        if self.groups != "one" or len(self.target_points) < 2:
            raise ValueError(
                "activation.gate: per_target is for dictionaries of two targets or more with groups: one; this one has "
                f"{len(self.target_points)}: {self.target_points}" + (", and groups" if self.groups != "one" else "")
            )

    def _require_one_target(self) -> None:
        if self.end_to_end is None:
            return
        targets = self.target_points
        if len(targets) > 1:
            raise ValueError(
                f"end_to_end puts the dictionary into the model at one target; this one has {len(targets)}: {targets}"
            )
        if joined := [point for point in [*self.sources, *targets] if "/" in point]:
            raise ValueError(f"end_to_end needs sources and target of one forward; {joined[0]} is of a joined store")
        downstream = self.end_to_end.downstream
        if len({*downstream, *targets}) <= len(downstream):
            raise ValueError(
                f"end_to_end.downstream names a hook point twice, or the target {targets[0]}: {downstream}"
            )

    def _require_groups(self) -> None:
        if isinstance(self.groups, str):
            if self.groups != "one" and len(self.sources) != len(self.target_points):
                raise ValueError(
                    f"groups: {self.groups} pairs sources with targets; there are {len(self.sources)} sources and "
                    f"{len(self.target_points)} targets"
                )
            if self.groups != "one" and self.num_latents % len(self.sources):
                raise ValueError(
                    f"groups: {self.groups} gives every source as many latents; {self.num_latents} is no multiple of "
                    f"{len(self.sources)}"
                )
            return
        total = sum(group.num_latents for group in self.groups)
        if total != self.num_latents:
            raise ValueError(f"the groups have {total} latents together, num_latents is {self.num_latents}")
        for name, known, used in (
            ("sources", self.sources, [point for group in self.groups for point in group.sources]),
            ("targets", self.target_points, [point for group in self.groups for point in group.targets]),
        ):
            if set(used) != set(known):
                raise ValueError(f"the groups' {name} are {sorted(set(used))}, the dictionary's are {sorted(known)}")
        if self.tied and any(set(group.sources) != set(group.targets) for group in self.groups):
            raise ValueError("tied needs groups that write what they read")

    @property
    def _is_plain_autoencoder(self) -> bool:
        return not self.is_transcoder and self.groups == "one"

    @property
    def latent_groups(self) -> list[LatentGroup]:
        """The groups, spelled out, in the order of their latents."""
        if isinstance(self.groups, list):
            return self.groups
        targets = self.target_points
        if self.groups == "one":
            return [LatentGroup(num_latents=self.num_latents, sources=self.sources, targets=targets)]
        share = self.num_latents // len(self.sources)
        ends = range(1, len(targets) + 1) if self.groups == "per_layer" else [len(targets)] * len(targets)
        return [
            LatentGroup(num_latents=share, sources=[source], targets=targets[index:end])
            for index, (source, end) in enumerate(zip(self.sources, ends, strict=True))
        ]

    @property
    def centres_input(self) -> bool:
        """``b_dec`` is taken off the input."""
        return self.activation.centres_input and not self.is_transcoder

    @property
    def is_transcoder(self) -> bool:
        """Targets differ from sources."""
        return bool(self.targets) and self.targets != self.sources

    @property
    def target_points(self) -> list[str]:
        """The targets, spelled out."""
        return list(self.targets or self.sources)


class DictionaryRecord(Spec):
    """``dictionary.json`` beside ``dictionary.safetensors``."""

    format: Literal[1] = 1
    """Format of the folder."""
    spec: DictionarySpec
    """What was asked for."""
    d_source: dict[str, int]
    """source hook point -> d_model, in order."""
    d_target: dict[str, int]
    """target hook point -> d_model, in order."""
    scales: dict[str, float]
    """hook point -> factor that activations are multiplied by before the dictionary, sqrt(d_model) / mean norm."""
    store_fingerprint: str
    """Store that it was trained on."""
    table_fingerprint: str
    """Token table of that store."""
    model: dict[str, Any]
    """Identity of the model whose activations these are."""
    train_spec: dict[str, Any]
    """The whole train job."""
    steps: NonNegativeInt
    """Optimiser steps taken."""
    tokens: NonNegativeInt
    """Rows seen, repeats counted."""
    metrics: dict[str, float] = {}
    """Last training metrics."""
    weights_sha256: str = ""
    """SHA-256 of ``dictionary.safetensors``, 64 hexadecimal digits; filled in by the writer of the folder."""
    versions: dict[str, str]
    """Versions of headworks, torch, numpy, ray."""
