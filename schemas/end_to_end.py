"""A loss of a dictionary that runs through the rest of the model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from schemas.fields import HookPoint, Spec
from schemas.model import ModelSpec


class EndToEnd(Spec):
    """At each step the model also reads some whole contexts, with the dictionary in its place, and the divergence of
    its predictions is added to the dictionary's own loss (Braun et al. 2024, arXiv 2405.12241)."""

    kl_coefficient: PositiveFloat = 1.0
    """Weight of KL(model || model with the dictionary in its place), in nats, mean over tokens. The loss that it is
    added to is about the unexplained share of the variance for TopK kinds, and of the order of d_model for others."""
    squared_error_coefficient: NonNegativeFloat = 1.0
    """Weight of the dictionary's own squared error while the divergence counts; 0: the paper's end-to-end loss. What
    makes codes sparse stays as it is."""
    downstream: list[HookPoint] = []
    """Hook points behind the target where the activations, too, shall stay what they are; the paper takes the residual
    stream of every later block."""
    downstream_coefficient: PositiveFloat = 1.0
    """Weight of ||a^ - a||^2 / ||a||^2 there, mean over tokens and hook points."""
    contexts: PositiveInt = 8
    """Contexts of a step, over all ranks: drawn from the store's text in a seeded order, each once before any twice."""
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all steps after which the divergence counts; before it the model does not run. 0.9 and more is a short
    fine-tuning, which does most of the work at little cost (Karvonen 2025, arXiv 2503.17272)."""
    model: ModelSpec | None = None
    """The model, where it no longer lies where the store found it, or shall compute in another precision; None: as the
    store says. Its weights must be those of the store."""
