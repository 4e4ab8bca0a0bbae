"""Activation functions of dictionaries with the losses that train them, one class each, after the paper named there."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from schemas.fields import Spec
from schemas.penalty import L0, DecoderNorms, Fraction, Tanh, TanhQuad


class ActivationSpec(Spec):
    """What all have in common."""

    kind: str
    """Discriminator."""
    centres_input: ClassVar[bool] = False
    """Autoencoders take ``b_dec`` off their input; transcoders never do."""

    @property
    def has_unit_decoder(self) -> bool:
        """Decoder rows are kept at norm 1."""
        return False


class SelectedLatents(ActivationSpec):
    """A selection of the largest pre-activations, with AuxK for dead latents."""

    k: PositiveInt = 32
    """Active latents of a row; of a batch selection, their mean."""
    aux_k: NonNegativeInt = 256
    """Dead latents that reconstruct the residual error of a row; 0: no auxiliary loss."""
    aux_coefficient: NonNegativeFloat = 1 / 32
    """Weight of the auxiliary loss."""
    dead_after_tokens: PositiveInt = 1_000_000
    """A latent is dead when it did not fire for this many tokens, counted over all ranks."""
    centres_input: ClassVar[bool] = True

    @property
    def has_unit_decoder(self) -> bool:
        """Yes."""
        return True


class TopK(SelectedLatents):
    """The k largest pre-activations of each row (Gao et al. 2024, arXiv 2406.04093), with AuxK for dead latents."""

    kind: Literal["topk"] = "topk"
    """Discriminator."""
    multi_k: NonNegativeInt = 0
    """Multi-TopK: latents of a second reconstruction that is also trained; that paper takes 4 k. 0: none."""
    multi_coefficient: PositiveFloat = 1 / 8
    """Weight of the second reconstruction."""

    @model_validator(mode="after")
    def _more_latents(self) -> Self:
        if 0 < self.multi_k <= self.k:
            raise ValueError(f"multi_k ({self.multi_k}) must be larger than k ({self.k}), or 0 for no second loss")
        return self

    @property
    def label(self) -> str:
        """For people."""
        return f"TopK, k = {self.k}" + (f" and {self.multi_k}" if self.multi_k else "")


class BatchTopK(SelectedLatents):
    """The k * rows largest positive pre-activations of the global batch (Bussmann et al. 2024, arXiv 2412.06410). What
    is trained decides row by row: a pre-activation counts above ``threshold``, the mean of the batches' smallest kept
    values."""

    kind: Literal["batch_topk"] = "batch_topk"
    """Discriminator."""
    threshold_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Weight of the past in the running mean of the threshold; the first 1 / (1 - decay) batches count alike."""

    @property
    def label(self) -> str:
        """For people."""
        return f"BatchTopK, k = {self.k}"


class MatryoshkaBatchTopK(SelectedLatents):
    """BatchTopK whose first latents must do alone (Bussmann et al. 2025, arXiv 2503.17547): the loss is the mean over
    several prefixes of the dictionary, each reconstructing with its own latents only."""

    kind: Literal["matryoshka_batch_topk"] = "matryoshka_batch_topk"
    """Discriminator."""
    prefixes: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [
        0.03125, 0.09375, 0.21875, 0.46875, 1.0,
    ]  # fmt: skip
    """Ends of the prefixes as shares of all latents, ascending, the last 1. The default are groups of 1/32, 1/16, 1/8,
    1/4 and the rest."""
    threshold_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """As in BatchTopK."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.prefixes != sorted(set(self.prefixes)) or self.prefixes[-1] != 1:
            raise ValueError(f"prefixes must ascend to 1.0, got {self.prefixes}")
        return self

    @property
    def label(self) -> str:
        """For people."""
        return f"Matryoshka BatchTopK, k = {self.k}, {len(self.prefixes)} prefixes"


class ReluL1(ActivationSpec):
    """ReLU codes with the L1 penalty weighted by decoder norms (Anthropic, April 2024 update)."""

    kind: Literal["relu_l1"] = "relu_l1"
    """Discriminator."""
    l1_coefficient: PositiveFloat = 5.0
    """Weight lambda of sum_i f_i * n_i, n_i the norm of the latent's decoder row."""
    l1_warmup_fraction: Fraction = 0.05
    """Share of all steps over which lambda rises linearly from 0."""
    decoder_norms: DecoderNorms = "per_target"
    """Of several targets: ``per_target`` sums their norms, so that one can go to exactly 0 (Lindsey et al. 2024, "L1 of
    norms"); ``concatenated`` takes the norm of the whole row ("L2 of norms", shared latents only)."""

    @property
    def label(self) -> str:
        """For people."""
        return f"ReLU, L1 x {self.l1_coefficient:g}"


class ReluL1UnitNorm(ActivationSpec):
    """ReLU codes, plain L1, decoder rows of norm 1, ``b_dec`` started at the geometric median of the data and taken off
    the input, dead latents resampled (Bricken et al. 2023, Towards Monosemanticity)."""

    kind: Literal["relu_l1_unit_norm"] = "relu_l1_unit_norm"
    """Discriminator."""
    l1_coefficient: PositiveFloat = 5.0
    """Weight lambda of sum_i f_i."""
    l1_warmup_fraction: Fraction = 0.05
    """Share of all steps over which lambda rises linearly from 0."""
    resample_at: list[Fraction] = [0.1, 0.2, 0.3, 0.4]
    """Shares of all steps after which dead latents are resampled; empty: never. The paper: 0.025, 0.05, 0.075 and 0.1
    of a run of 8 * 10**9 rows."""
    resample_exponent: NonNegativeFloat = 2.0
    """A row is drawn with a probability in proportion to its loss to this power."""
    dead_after_tokens: PositiveInt = 1_000_000
    """A latent is dead when it did not fire for this many tokens, counted over all ranks."""
    centres_input: ClassVar[bool] = True

    @property
    def has_unit_decoder(self) -> bool:
        """Yes."""
        return True

    @property
    def label(self) -> str:
        """For people."""
        return f"ReLU, unit norms, L1 x {self.l1_coefficient:g}"


class ReluPAnneal(ActivationSpec):
    """ReLU codes with the penalty sum_i f_i^p, p falling from 1 (Karvonen et al. 2024, arXiv 2408.00113). lambda is
    changed with p such that the penalty of the last batches stays what it was. Decoder rows have norm 1."""

    kind: Literal["relu_p_anneal"] = "relu_p_anneal"
    """Discriminator."""
    coefficient: PositiveFloat = 5.0
    """Weight lambda while p is 1."""
    warmup_fraction: Fraction = 0.05
    """Share of all steps over which lambda rises linearly from 0."""
    p_end: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The last p."""
    anneal_start: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of all steps after which p falls."""
    anneal_steps: PositiveInt = 10
    """Equal changes of p between there and the end of the run."""
    centres_input: ClassVar[bool] = True

    @property
    def has_unit_decoder(self) -> bool:
        """Yes."""
        return True

    @property
    def label(self) -> str:
        """For people."""
        return f"ReLU, L1 to L{self.p_end:g} x {self.coefficient:g}"


class ReluTanh(ActivationSpec):
    """ReLU codes with a tanh penalty, weighted by decoder norms (Anthropic 2024-2025; Ge et al. 2025)."""

    kind: Literal["relu_tanh"] = "relu_tanh"
    """Discriminator."""
    penalty: Annotated[Tanh | TanhQuad, Field(discriminator="kind")] = TanhQuad()
    """Sparsity penalty."""

    @property
    def label(self) -> str:
        """For people."""
        return f"ReLU, {self.penalty.kind} x {self.penalty.coefficient:g}"


class JumpRelu(ActivationSpec):
    """Pre-activations above a trained threshold of each latent pass, with straight-through gradients for the threshold
    (Rajamanoharan et al. 2024, arXiv 2407.14435). Defaults: Anthropic, January 2025 update. With the L0 penalty of the
    paper, decoder rows have norm 1."""

    kind: Literal["jumprelu"] = "jumprelu"
    """Discriminator."""
    penalty: Annotated[L0 | Tanh | TanhQuad, Field(discriminator="kind")] = Tanh()
    """Sparsity penalty."""
    threshold: PositiveFloat = 0.1
    """Threshold at the start; it is trained as its logarithm. The paper, whose rows have norm 1: 0.001."""
    bandwidth: PositiveFloat = 2.0
    """Width of the window around the threshold in which pre-activations move it. The paper: 0.001, rows of norm 1."""
    pre_activation_coefficient: NonNegativeFloat = 3e-6
    """Weight of sum_i max(0, threshold_i - pre_i) n_i, which revives dead latents; 0: none."""
    gate: Literal["shared", "per_target"] = "shared"
    """Of several targets. ``shared``: a latent is on at all of them or at none, as in the formula of Ge et al. 2025
    (arXiv 2509.17196). ``per_target``: at target t it is on where pre_i n_i^t is above a threshold of its own, as in
    their code, so that it can be on at one snapshot and off at another; with ``tanh`` or ``tanh_quad`` and the norms of
    each target only. They move thresholds at 0.1 of the learning rate, with a bandwidth of 4."""

    @model_validator(mode="after")
    def _gates_count_targets(self) -> Self:
        if self.gate == "shared":
            return self
        if isinstance(self.penalty, L0) or self.penalty.decoder_norms != "per_target":
            raise ValueError(
                "gate: per_target needs a penalty of kind tanh or tanh_quad with decoder_norms: per_target: what is on "
                "differs between targets, so the penalty has to go through them one by one"
            )
        return self

    @property
    def has_unit_decoder(self) -> bool:
        """With an L0 penalty, which says nothing of the scale of a latent."""
        return isinstance(self.penalty, L0)

    @property
    def label(self) -> str:
        """For people."""
        gate = "" if self.gate == "shared" else ", a gate for each target"
        return f"JumpReLU, {self.penalty.kind} x {self.penalty.coefficient:g}{gate}"


class Gated(ActivationSpec):
    """A gate decides what is on, a magnitude how much (Rajamanoharan et al. 2024, arXiv 2404.16014). L1 on the gate's
    pre-activations, an auxiliary reconstruction from them through a decoder held constant. Decoder rows of norm 1."""

    kind: Literal["gated"] = "gated"
    """Discriminator."""
    l1_coefficient: PositiveFloat = 5.0
    """Weight lambda of sum_i max(0, gate_i)."""
    l1_warmup_fraction: Fraction = 0.05
    """Share of all steps over which lambda rises linearly from 0."""
    centres_input: ClassVar[bool] = True

    @property
    def has_unit_decoder(self) -> bool:
        """Yes."""
        return True

    @property
    def label(self) -> str:
        """For people."""
        return f"gated, L1 x {self.l1_coefficient:g}"


Activation = Annotated[
    TopK | BatchTopK | MatryoshkaBatchTopK | ReluL1 | ReluL1UnitNorm | ReluPAnneal | ReluTanh | JumpRelu | Gated,
    Field(discriminator="kind"),
]
