"""A few thousand rows of a store, for starting weights that depend on data and not on its moments alone."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.order.eligible import EligibleRows
from pipeline.store.arriving import STATISTICS_ROWS, ArrivingStore, FeedStore

NUM_ROWS = 8192
NUM_CHUNKS = 16


def sample_rows(store: FeedStore, hook: str, eligible: EligibleRows) -> torch.Tensor:
    """Unscaled float32 [n, D]: rows from chunks spread evenly over the store; the same whenever they are asked for.

    Of a store that is still being made the chunks lie in the rows that its statistics are from.
    """
    filled = np.flatnonzero(eligible.counts)
    if isinstance(store, ArrivingStore):
        filled = filled[filled < max(1, min(STATISTICS_ROWS, store.num_rows) // eligible.chunk_rows)]
    places = np.linspace(0, len(filled) - 1, min(NUM_CHUNKS, len(filled))).astype(np.int64)
    parts = []
    for chunk in filled[np.unique(places)]:
        start = int(chunk) * eligible.chunk_rows
        values = store.read_values(hook, start, min(start + eligible.chunk_rows, store.num_rows))
        kept = eligible.rows_of(int(chunk)) - start
        parts.append(values[kept[:: max(1, len(kept) * len(places) // NUM_ROWS)]])
    return torch.from_numpy(np.concatenate(parts))
