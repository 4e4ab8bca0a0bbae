"""What a model gets of a batch: token ids, or the pixels of the images that the contexts are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.collection.plan import Batch
from pipeline.models.forward import ActivationForward
from pipeline.models.load import LoadedModel
from pipeline.models.vision import patch_grid
from pipeline.store.rows import TokenRows
from pipeline.tokens.images import ImageSource, pixels
from pipeline.tokens.patches import PatchGrid
from pipeline.tokens.table import TokenTable
from schemas.collect import CollectSpec
from schemas.corpus import ImagesCorpus
from schemas.errors import MissingError

ModelInputs = Callable[[Batch, TokenRows], Tensor]
"""A batch, and the covering rows that it counts from, to what ``ActivationForward.run`` takes."""


def token_inputs(batch: Batch, rows: TokenRows) -> Tensor:
    """int64 [B, L], padded on the right."""
    return torch.from_numpy(batch.token_matrix(rows.token_id))


class ImageInputs:
    """Pixels float32 [B, 3, size, size] of the images that the contexts of a batch are."""

    def __init__(self, corpus: ImagesCorpus, table: TokenTable) -> None:
        """Raises MissingError: the images are gone."""
        grid = table.tokenizer()
        assert isinstance(grid, PatchGrid), "a table of images has a patch grid"
        self._image, self._table, self._source = grid.image, table, ImageSource(corpus)

    def __call__(self, batch: Batch, rows: TokenRows) -> Tensor:
        """Raises MissingError, MismatchError: an image is gone, or is another one now. CorpusError: it is none."""
        return torch.from_numpy(np.stack([self._pixels(int(rows.document_id[start])) for start in batch.starts]))

    def _pixels(self, document_id: int) -> Any:
        document = self._table.document(document_id)
        data = self._source.read(document["name"], document["sha256"])
        return pixels(data, self._image, name=document["name"])


def open_inputs(spec: CollectSpec, rows: object) -> ModelInputs:
    """How the job's model gets its input; ``rows`` is where its token rows come from.

    Raises:
        MissingError: a corpus of images without its token table, which knows which image a row belongs to.
    """
    if not isinstance(spec.tokens.corpus, ImagesCorpus):
        return token_inputs
    if not isinstance(rows, TokenTable):
        raise MissingError("images are found through the token table, which is gone; restore it, or name its place")
    return ImageInputs(spec.tokens.corpus, rows)


def open_forward(loaded: LoadedModel, spec: CollectSpec, hook_points: Sequence[str]) -> ActivationForward:
    """The forward of a job's model, told what its contexts are like. Raises as ``ActivationForward``."""
    if isinstance(spec.tokens.corpus, ImagesCorpus):
        grid = patch_grid(spec.tokens.corpus, spec.model)
        return ActivationForward(loaded, hook_points, context_length=grid.vocab_size, image_size=grid.image.size)
    return ActivationForward(loaded, hook_points, context_length=spec.tokens.packing.context_length)
