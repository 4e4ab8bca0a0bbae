"""Sparse dictionaries: what a train job is asked for, and what a saved dictionary says of itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from schemas.fields import Name, SourcePoint, Spec


class TopK(Spec):
    """The k largest pre-activations of each row (Gao et al. 2024, arXiv 2406.04093), with AuxK for dead latents."""

    kind: Literal["topk"] = "topk"
    """Discriminator."""
    k: PositiveInt = 32
    """Active latents of a row."""
    aux_k: NonNegativeInt = 256
    """Dead latents that reconstruct the residual error of a row; 0: no auxiliary loss."""
    aux_coefficient: NonNegativeFloat = 1 / 32
    """Weight of the auxiliary loss."""
    dead_after_tokens: PositiveInt = 1_000_000
    """A latent is dead when it did not fire for this many tokens, counted over all ranks."""


class ReluL1(Spec):
    """ReLU codes with the L1 penalty weighted by decoder norms (Anthropic, April 2024 update)."""

    kind: Literal["relu_l1"] = "relu_l1"
    """Discriminator."""
    l1_coefficient: PositiveFloat = 5.0
    """Weight lambda of sum_i f_i * ||W_dec,i||."""
    l1_warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of all steps over which lambda rises linearly from 0."""


Activation = Annotated[TopK | ReluL1, Field(discriminator="kind")]


class DictionarySpec(Spec):
    """One dictionary to train. SAE: targets = sources. Transcoder: other targets, optional skip."""

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
    skip: bool = False
    """Transcoders: add a linear map from sources to targets, ``W_skip``."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate of Adam. The default suits TopK with about 4,600 latents; lower it as 1/sqrt(num_latents)."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if isinstance(self.activation, TopK) and self.activation.k > self.num_latents:
            raise ValueError(f"activation.k ({self.activation.k}) is larger than num_latents ({self.num_latents})")
        if self.skip and not self.is_transcoder:
            raise ValueError("skip needs targets other than the sources: on an SAE it could copy its input")
        return self

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
