"""Training a network whose weights are mostly zero (Gao et al. 2025, arXiv 2511.13653)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from schemas.fields import Spec
from schemas.network import KeptFraction

RunShare = Annotated[float, Field(ge=0, le=1)]

_RELEASED: dict[str, Any] = {
    "embedding_factor": 4.0, "biases": "dense", "positions": "zero", "anneal_start": 0.01,
    "learning_rate": "relative", "gradient": "normalise", "decay": "after_projection",
}  # fmt: skip


class WeightSparsitySpec(Spec):
    """After each step only the weights that are largest by magnitude stay, the same share of each matrix; gradients and
    moments stay dense, so a weight that was set to 0 can come back. Norms, sinks, the bigram table and the weights of
    residual connections are never touched."""

    preset: Literal["paper", "released"] = "paper"
    """What fields that are not given are: as the paper describes it, which is what this page says, or as the authors'
    script does it: ``embedding_factor: 4``, ``biases: dense``, ``positions: zero``, ``anneal_start: 0.01``,
    ``learning_rate: relative``, ``gradient: normalise`` and ``decay: after_projection``."""
    fraction: KeptFraction = 1 / 64
    """Share of the weights of each matrix that is left at the end; int(share * size) of them, at least 1."""
    embedding_factor: PositiveFloat = 1.0
    """Embedding and unembedding keep this times ``fraction``, at most all."""
    biases: Literal["sparse", "dense"] = "sparse"
    """Whether biases are cut like matrices."""
    positions: Literal["sparse", "dense", "zero"] = "sparse"
    """Learned positions: cut like the embedding, left alone, or held at 0."""
    survivors: NonNegativeInt = 4
    """Weights that every neuron and every channel of a query, key or value keeps, the largest of its own: a row of what
    it reads with, a column of what it writes with. Fewer where all together would be more than the matrix may keep."""
    anneal_start: RunShare = 0.0
    """Share of the run until which all weights are kept."""
    anneal_stop: RunShare = 0.5
    """Share of the run from which ``fraction`` is kept; linear in between. The paper's largest models take 0.8."""
    learning_rate: Literal["inverse_root", "relative", "none"] = "inverse_root"
    """Factor of the learning rate while share s is kept: 1/sqrt(s), which begins at 1; sqrt(fraction / s), which ends
    at 1; or none."""
    gradient: Literal["clip", "normalise", "none"] = "clip"
    """Root mean square of the whole gradient, over all weights: scaled down to ``gradient_rms`` where it is above, or
    always made ``gradient_rms`` (divided by the root mean square + 1e-5), or left alone."""
    gradient_rms: PositiveFloat = 1.0
    """See ``gradient``."""
    decay: Literal["optimiser", "after_projection"] = "optimiser"
    """Who applies weight decay: the optimiser (AdamW) before the cut, or w -= rate * decay * w by hand behind it, on
    matrices other than the bigram table."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("preset") == "released":
            return {**_RELEASED, **given}
        return given

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.anneal_stop < self.anneal_start:
            raise ValueError(f"anneal_stop ({self.anneal_stop}) is before anneal_start ({self.anneal_start})")
        return self

    def share(self, progress: float, *, target: float | None = None) -> float:
        """What is kept after a share ``progress`` of the run; ``target``: what at its end, None for ``fraction``."""
        target = self.fraction if target is None else target
        if progress >= self.anneal_stop:
            return target
        if progress <= self.anneal_start:
            return 1.0
        behind = (progress - self.anneal_start) / (self.anneal_stop - self.anneal_start)
        return 1.0 + behind * (target - 1.0)

    @property
    def embedding_fraction(self) -> float:
        """Share of the weights of embedding and unembedding that is left at the end."""
        return min(self.embedding_factor * self.fraction, 1.0)
