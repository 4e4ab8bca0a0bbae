"""Optimisers of a dictionary: how its gradients, constrained and clipped, move its weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from schemas.fields import Spec

Decay = Annotated[float, Field(ge=0, lt=1)]


class Adam(Spec):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), without weight decay."""

    kind: Literal["adam"] = "adam"
    """Discriminator."""
    beta1: Decay = 0.9
    """Weight of the past in the running mean of gradients."""
    beta2: Decay = 0.999
    """Weight of the past in the running mean of their squares."""
    epsilon: PositiveFloat = 6.25e-10
    """Added to the root of the latter. Small, since gradients of a normalised loss are (Gao et al. 2024, appendix
    A.2)."""


class Muon(Spec):
    """Momentum whose matrix is made near orthogonal by five Newton-Schulz steps (Jordan et al. 2024): every direction
    that a matrix may move in moves alike. Weights that are no matrix (biases, thresholds) are moved by Adam."""

    kind: Literal["muon"] = "muon"
    """Discriminator."""
    momentum: Decay = 0.95
    """Weight of the past in the running mean of gradients."""
    nesterov: bool = True
    """Look one step ahead: the mean of gradients is taken once more with the newest."""
    rate: Literal["match_adam", "original"] = "match_adam"
    """What the learning rate of a matrix [A, B] is multiplied by. ``match_adam``: 0.2 sqrt(max(A, B)), so that a rate
    that suits Adam suits Muon (Liu et al. 2025, arXiv 2502.16982); ``original``: sqrt(max(1, A / B))."""
    others: Adam = Adam()
    """Of the weights that are no matrix."""


class Signum(Spec):
    """Every weight moves by the learning rate, against the sign of its running mean of gradients (Bernstein et al.
    2018, arXiv 1802.04434). A weight whose gradient is exactly 0 stays where it is: the latents that did not fire would
    otherwise go on for hundreds of steps by the sign of their last gradient."""

    kind: Literal["signum"] = "signum"
    """Discriminator."""
    momentum: Decay = 0.9
    """Weight of the past in the running mean of gradients; 0: the sign of the gradient itself."""


Optimiser = Annotated[Adam | Muon | Signum, Field(discriminator="kind")]
