"""Job kind ``evaluate``: held-out figures, spliced cross-entropy and the report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from schemas.fields import InputUrl, Name, OutputUrl, Spec


class ReportSpec(Spec):
    """The page of features."""

    num_features: NonNegativeInt = 60
    """Features shown for each dictionary, spread over the range of densities."""
    contexts_per_feature: PositiveInt = 8
    """Top contexts of a feature."""
    context_tokens: PositiveInt = 24
    """Tokens shown around the highest one."""
    rows: PositiveInt = 65536
    """Rows searched for top contexts."""


class SnapshotsSpec(Spec):
    """Snapshots of one training that a group of stores was collected from: how near each predicts to the corpus'
    unigrams and bigrams, and which kinds of latents of a crosscoder come when (Ge et al. 2025, arXiv 2509.17196)."""

    tokens: PositiveInt = 8192
    """Tokens on which each snapshot's model is run, in whole contexts; frequencies are counted over the whole store."""
    rows: PositiveInt = 65536
    """Rows on which it is looked at what latents fire on, in whole contexts."""
    repeat_tokens: PositiveInt = 2
    """A row repeats if its token and as many before it, this number together, came earlier in the context. In a text of
    few words pairs repeat by chance: then 3."""


class UniversalitySpec(Spec):
    """Do two dictionaries know the same features? Latents are paired by their activations on the same rows, and the
    directions of the pairs compared as two spaces, beside shuffled pairs (Lan et al. 2024, arXiv 2410.06981)."""

    pairs: list[Annotated[list[Name], Field(min_length=2, max_length=2)]] = []
    """Two names of dictionaries each, which are compared; empty: each with each."""
    rows: PositiveInt = 100_000
    """At most this many rows, the same for all, of held-out and training documents alike."""
    above: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Least Pearson correlation of a pair of latents."""
    shuffles: PositiveInt = 1000
    """Pairings at random; p is at least 1 / (1 + shuffles)."""


class EvaluateSpec(Spec):
    """Evaluate trained dictionaries."""

    kind: Literal["evaluate"] = "evaluate"
    """Discriminator."""
    name: Name = "evaluate"
    """Name of this job."""
    store: InputUrl | Annotated[dict[Name, InputUrl], Field(min_length=2)]
    """Store with the held-out rows, or ``${NAME}`` of a collect job of the same pipeline; a group or several stores by
    name for dictionaries that were trained so, without cross-entropy then."""
    dictionaries: InputUrl
    """Folder of a train job, or ``${NAME}`` of a train job of the same pipeline."""
    rows: Literal["held_out", "all"] = "held_out"
    """Rows the figures are measured on. ``held_out``: documents that training never saw."""
    max_rows: PositiveInt = 65536
    """At most this many rows for reconstruction figures, the first ones in a seeded order."""
    cross_entropy_tokens: NonNegativeInt = 4096
    """Tokens for the spliced cross-entropy; 0: leave it out."""
    interpretation: InputUrl | None = None
    """Output of an interpret job over the same dictionaries, or ``${NAME}`` of one of the same pipeline: its latents
    are the features of the page, with their explanations and scores. None: no explanations."""
    snapshots: SnapshotsSpec | None = None
    """Also compare the snapshots of a group of stores, whose models are loaded one by one; None: do not."""
    universality: UniversalitySpec | None = None
    """Also compare the dictionaries with each other, see docs/dictionaries.md; None: do not."""
    report: ReportSpec = ReportSpec()
    """The page of features."""
    seed: NonNegativeInt = 0
    """Seed of the choice of rows."""
    output: OutputUrl
    """Folder for ``evaluation.json`` and ``report.html``."""
