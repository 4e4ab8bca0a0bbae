"""Running dictionaries over rows of a store: shuffled rows for the figures, whole contexts for the features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.evaluation.contexts import Bounds, choose_contexts, read_tokens
from pipeline.evaluation.features import FeatureSearch, Pieces, SearchedRows, choose_latents
from pipeline.evaluation.reconstruction import Reconstruction, ReconstructionSums
from pipeline.evaluation.trained import Trained
from pipeline.order.eligible import EligibleRows, scan
from pipeline.order.feed import RowFeed
from pipeline.store.joined import AnyStore
from schemas.evaluate import ReportSpec
from schemas.train import RowOrder

Count = Callable[[int], None]
"""Called with the number of rows that were just done."""


@torch.no_grad()
def measure(
    store: AnyStore, trained: Trained, *, split: Literal["held_out", "all"], max_rows: int, seed: int, count: Count
) -> Reconstruction:
    """Figures of one dictionary on the first ``max_rows`` rows of a seeded order, less the rows training left out.

    Raises:
        SpecError: no rows are left.
        DivergenceError: an activation or a prediction is not finite.
    """
    sums = ReconstructionSums(trained.name, trained.dictionary.num_latents, trained.record.d_target)
    feed = RowFeed(
        store,
        trained.points,
        rows=trained.train_spec.rows,
        order=RowOrder(seed=seed),
        batch_rows=trained.batch_rows,
        split=split,
    )
    left = min(max_rows, feed.rows_per_epoch)
    with closing(feed.iterate()) as batches:
        while left:
            batch = next(batches)
            acts = {hook: tensor[:left].float() for hook, tensor in batch.activations.items()}
            firings, predicted = trained.apply(acts)
            sums.add(acts, {hook: tensor.cpu() for hook, tensor in predicted.items()}, firings)
            num_rows = min(left, len(batch.rows))
            left -= num_rows
            count(num_rows)
    return sums.figures()


def eligible_rows(store: AnyStore, trained: Trained) -> EligibleRows:
    """The rows that a dictionary is applied to, of held-out and training documents alike."""
    return scan(store, trained.points, trained.train_spec.rows, "all")


def are_eligible(eligible: EligibleRows, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """[T] for row ids [T], in any order."""
    chunks = rows // eligible.chunk_rows
    known = [eligible.rows_of(int(chunk)) for chunk in np.unique(chunks)]
    return np.isin(rows, np.concatenate(known)) if known else np.zeros(0, dtype=np.bool_)


def searched_contexts(store: AnyStore, spec: ReportSpec, *, seed: int) -> list[Bounds]:
    """Whole contexts of held-out and training documents: features are shown, not scored."""
    return choose_contexts(store, num_rows=spec.rows, split="all", seed=seed)


@torch.no_grad()
def find_features(
    store: AnyStore,
    trained: Trained,
    figures: Reconstruction,
    contexts: Sequence[Bounds],
    eligible: EligibleRows,
    spec: ReportSpec,
    *,
    pieces: Pieces,
    count: Count,
    latents: npt.NDArray[np.int64] | None = None,
) -> list[dict[str, Any]]:
    """``spec.num_features`` features of one dictionary, or those of ``latents``, with their strongest contexts among
    ``contexts``."""
    tokens = read_tokens(store, contexts)
    rows = SearchedRows(
        row=tokens.row,
        context=np.repeat(np.arange(len(contexts)), [stop - start for start, stop in contexts]),
        token_id=tokens.token_id,
        document_id=tokens.document_id,
        position=tokens.position,
        held_out=tokens.held_out,
        eligible=are_eligible(eligible, tokens.row),
    )
    if latents is None:
        latents = choose_latents(figures.fired, spec.num_features)
    search = FeatureSearch(latents, figures.fired, figures.num_rows, rows, spec)
    places = np.flatnonzero(rows.eligible)
    for start in range(0, len(places), trained.batch_rows):
        part = places[start : start + trained.batch_rows]
        search.add(part, trained.encode(_read(store, trained, rows.row[part])))
        count(len(part))
    return search.features(pieces)


def _read(store: AnyStore, trained: Trained, rows: npt.NDArray[np.int64]) -> dict[str, Tensor]:
    return {hook: torch.from_numpy(store.gather_values(hook, rows)) for hook in trained.record.d_source}
