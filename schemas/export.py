"""What ``headworks store export`` is asked for. Not a job kind: an export reads one store and runs on one machine."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from schemas.fields import Codec, Dtype, HookPoint, Layout, Spec, Url

DictionaryFormat = Literal["saelens", "sparsify", "dictionary_learning", "circuit_tracer"]
"""Libraries whose dictionaries are written and read."""


class AllRows(Spec):
    """Every row of the store."""

    kind: Literal["all"] = "all"
    """Discriminator."""


class RowRange(Spec):
    """Consecutive rows. From row 0 on they stay what they are: row r of the export is row r of the store."""

    kind: Literal["range"] = "range"
    """Discriminator."""
    start: NonNegativeInt
    """First row."""
    stop: PositiveInt
    """Row after the last."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.stop <= self.start:
            raise ValueError(f"rows {self.start}:{self.stop} are none; expected START:STOP with START < STOP")
        return self


class SplitRows(Spec):
    """The rows of one side of the split into training and held-out documents."""

    kind: Literal["split"] = "split"
    """Discriminator."""
    split: Literal["held_out", "train"]
    """Which side."""


class DocumentRows(Spec):
    """The rows of chosen documents, in the order of the store."""

    kind: Literal["documents"] = "documents"
    """Discriminator."""
    documents: Annotated[list[NonNegativeInt], Field(min_length=1)]
    """Document ids, in any order."""


RowChoice = Annotated[AllRows | RowRange | SplitRows | DocumentRows, Field(discriminator="kind")]


class ExportSpec(Spec):
    """Rewrite a store, or a part of it, in another form."""

    kind: Literal["export"] = "export"
    """Discriminator."""
    store: Url
    """The complete store to read."""
    output: Url
    """Folder or URL of what is written."""
    format: Literal["headworks", "sae-lens"] = "headworks"
    """``headworks``: a store. ``sae-lens``: a dataset of cached activations as SAELens reads it."""
    layout: Literal["same"] | Layout = "same"
    """Layout of the new store."""
    dtype: Literal["same"] | Dtype = "same"
    """Precision of what is written. ``sae-lens`` takes float32 (``same`` means that) and float16."""
    codec: Literal["same"] | Codec = "same"
    """Codec of the new store; ``same`` becomes ``none`` where layout or dtype cannot have it."""
    lossy: bool = False
    """Consent to a precision that cannot hold every value as it is."""
    hook_points: list[HookPoint] = []
    """Which hook points; none: all of the store's."""
    rows: RowChoice = AllRows()
    """Which rows."""
    short_contexts: Literal["refuse", "drop"] = "refuse"
    """``sae-lens`` only: what to do with contexts that are shorter than the longest, which that format cannot hold."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if len(set(self.hook_points)) != len(self.hook_points):
            raise ValueError(f"hook_points names one hook point twice: {self.hook_points}")
        if self.output.rstrip("/") == self.store.rstrip("/"):
            raise ValueError(f"output is the store itself ({self.store}): an export is a new one")
        if self.format == "sae-lens":
            if (self.layout, self.codec) != ("same", "same"):
                raise ValueError("format sae-lens has one layout and no codec: leave layout and codec out")
            if self.dtype not in ("same", "float32", "float16"):
                raise ValueError(f"format sae-lens takes float32 or float16; dtype is {self.dtype}")
        elif self.short_contexts != "refuse":
            raise ValueError("short_contexts is for format sae-lens: a store holds contexts of any length")
        return self
