"""A small decoder that is built here: its size, and the variants of its blocks."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from schemas.fields import Spec

Location = Literal["attn_in", "attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out"]
"""Places of a block where AbsTopK may stand, in the order in which a forward passes them: behind the norm before
attention, the queries, keys and values of all heads side by side, what attention adds to the stream, behind the norm
before the MLP, the neurons behind their activation function, what the MLP adds to the stream."""

LOCATIONS: tuple[Location, ...] = get_args(Location)

KeptFraction = Annotated[float, Field(gt=0, le=1)]
"""Share of the channels that AbsTopK keeps; 1: all of them."""


class SoftmaxAttention(Spec):
    """Causal softmax attention, scaled by 1/sqrt(d_head)."""

    kind: Literal["softmax"] = "softmax"
    """Discriminator."""


class PidAttention(Spec):
    """Softmax attention that is steered back to the values of the first layer (PIDformer, Nguyen et al. 2024, arXiv
    2402.15989). With V^l the values of layer l and the error e^l = V^0 - V^l it adds to the output of the heads

        P e^l + I sum of e^m over m <= l + D (e^l - e^(l-1)),

    0 in layer 0. With P alone this is NeuTRENO. The integral grows with depth: keep I small."""

    kind: Literal["pid"] = "pid"
    """Discriminator."""
    proportional: NonNegativeFloat = 0.5
    """P."""
    integral: NonNegativeFloat = 0.05
    """I."""
    derivative: NonNegativeFloat = 0.05
    """D."""


Attention = Annotated[SoftmaxAttention | PidAttention, Field(discriminator="kind")]


class PlainResidual(Spec):
    """x + f(x)."""

    kind: Literal["plain"] = "plain"
    """Discriminator."""


class LaurelResidual(Spec):
    """Learned augmented residual connections (LAuReL, Menghani et al. 2024, arXiv 2411.07501). f is the branch, of
    attention or of the MLP, x_i the stream before it, and x_(i-j) the stream j connections earlier:

    - ``rw``: a f(x_i) + b x_i
    - ``lr``: f(x_i) + B A x_i + x_i
    - ``pa``: f(x_i) + x_i + sum of g_j h(x_(i-j)), h = B A
    - ``rw_lr``: a f(x_i) + b (B A x_i + x_i)
    - ``rw_lr_pa``: a f(x_i) + b (x_i + sum of g_j B_j A_j x_(i-j))

    The sums are over j = 0 to ``previous``, and g_0 is 1. All begin as the plain residual connection."""

    kind: Literal["laurel"] = "laurel"
    """Discriminator."""
    form: Literal["rw", "lr", "pa", "rw_lr", "rw_lr_pa"] = "rw_lr"
    """Which of the equations."""
    rank: PositiveInt = 4
    """Rows of A and columns of B; ``rw`` has neither."""
    previous: NonNegativeInt = 2
    """Earlier streams that ``pa`` and ``rw_lr_pa`` see beside x_i; at most as many as there are."""
    weights: Literal["free", "softmax", "sigmoid"] = "softmax"
    """What a and b are of two learned numbers: themselves, twice their softmax (a + b = 2), or twice the sigmoid of
    each. All begin at 1."""

    @property
    def looks_back(self) -> bool:
        """Connections see streams of earlier ones."""
        return self.form in ("pa", "rw_lr_pa") and self.previous > 0


Residual = Annotated[PlainResidual | LaurelResidual, Field(discriminator="kind")]


class NetworkSpec(Spec):
    """A decoder like GPT-2 with RMSNorm before each branch and GELU (Gao et al. 2025, arXiv 2511.13653), with the
    options that weight-sparse training calls for."""

    layers: PositiveInt = 4
    """Blocks, each of attention and an MLP."""
    d_model: PositiveInt = 128
    """Width of the residual stream."""
    heads: PositiveInt = 8
    """Attention heads of a block."""
    d_head: NonNegativeInt = 0
    """Width of a head; 0: d_model / heads."""
    d_mlp: NonNegativeInt = 0
    """Neurons of a block; 0: 4 d_model."""
    context_length: PositiveInt = 256
    """Tokens of the longest context. Only learned positions depend on it."""
    positions: Literal["none", "learned"] = "none"
    """``learned``: a vector for each position is added to the embedding. ``none``: only the causal mask tells order."""
    activation_fraction: KeptFraction = 1.0
    """AbsTopK at all locations: the share of channels, the largest by magnitude, that are kept in each row; at least
    one is. 1: all of them."""
    activation_fractions: dict[Location, KeptFraction] = {}
    """Other shares for some of the locations."""
    bigram_table: bool = False
    """A table [vocabulary, vocabulary] whose row of the current token is added to the logits."""
    attention_sink: bool = False
    """Each head learns the logit of one more place to attend to, whose value is 0."""
    tied_embeddings: bool = False
    """The unembedding is the embedding."""
    biases: bool = True
    """All projections of a block have a bias."""
    attention: Attention = SoftmaxAttention()
    """How heads mix values."""
    residual: Residual = PlainResidual()
    """How a branch is added to the stream."""

    @property
    def carries(self) -> bool:
        """Blocks hand each other more than the stream."""
        return isinstance(self.attention, PidAttention) or (
            isinstance(self.residual, LaurelResidual) and self.residual.looks_back
        )

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.d_head or self.d_model // self.heads

    @property
    def neurons(self) -> int:
        """Neurons of a block."""
        return self.d_mlp or 4 * self.d_model

    def width(self, location: Location) -> int:
        """Channels at a location."""
        if location == "mlp_neuron":
            return self.neurons
        return self.heads * self.head_width if location in ("attn_q", "attn_k", "attn_v") else self.d_model

    def kept(self, location: Location) -> int:
        """Channels of a row that AbsTopK leaves at a location: int(share * width), at least 1."""
        share = self.activation_fractions.get(location, self.activation_fraction)
        return max(int(share * self.width(location)), 1)

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if not self.d_head and self.d_model % self.heads:
            raise ValueError(
                f"d_model ({self.d_model}) is not a multiple of heads ({self.heads}): change one, or give d_head"
            )
        return self
