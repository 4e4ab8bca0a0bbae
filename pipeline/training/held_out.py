"""Rows that training never sees, to measure dictionaries on while they are trained.

They are rows of the store's held-out documents (``tokens.held_out_fraction`` of the collect job), chosen by a seed:

  1. permute the units by the seed, and of a store that is still being made take those that its statistics are from,
     which every training waits for before its first step;
  2. take held-out rows unit by unit until there are enough, of the last unit some at random;
  3. make global batches of them; each rank keeps its share of each, in memory.

So the figures are the same on any number of ranks, but for the order of float additions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from pipeline.order.eligible import token_mask
from pipeline.store import layout
from pipeline.store.arriving import ArrivingStore, FeedStore, statistics_units
from pipeline.store.statistics import median_norm
from pipeline.training.world import World
from schemas.errors import DivergenceError, SpecError
from schemas.train import HeldOut, TrainSpec

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class HeldOutBatch:
    """A global batch of held-out rows."""

    acts: Mapping[str, torch.Tensor]
    """This rank's share, hook point -> raw float32 [b, D]."""
    num_rows: int
    """Rows of all ranks."""


def read(
    spec: TrainSpec, store: FeedStore, points: Sequence[str], ranks: World, device: torch.device
) -> list[HeldOutBatch]:
    """The rows of ``spec.held_out``, none where that is not set. ``ranks``: those that rows are shared out among.

    Raises:
        SpecError: the store holds no row out.
        DivergenceError: a row is not finite.
    """
    if spec.held_out is None:
        return []
    chosen = choose(store, spec, spec.held_out)
    batches = []
    for start in range(0, len(chosen), spec.batch_rows):
        share = np.array_split(chosen[start : start + spec.batch_rows], ranks.size)[ranks.rank]
        acts = _without_large(store, spec, {point: _values(store, point, share) for point in points})
        count = torch.tensor(len(next(iter(acts.values()))), device=device)
        ranks.all_reduce_sum(count)
        if int(count):
            batches.append(HeldOutBatch(acts, int(count)))
    return batches


def choose(store: FeedStore, spec: TrainSpec, wanted: HeldOut) -> Ints:
    """Ids of the rows, at most ``wanted.num_rows``; equal on all ranks."""
    shard_rows = store.record.shard_rows
    is_arriving = isinstance(store, ArrivingStore)
    num_units = (
        statistics_units(store.num_rows, shard_rows) if is_arriving else layout.num_units(store.num_rows, shard_rows)
    )
    generator = np.random.Generator(np.random.Philox(wanted.seed))
    parts: list[Ints] = []
    left = wanted.num_rows
    for unit in generator.permutation(num_units):
        start = int(unit) * shard_rows
        tokens = store.tokens(start, min(start + shard_rows, store.num_rows))
        mask = token_mask(tokens, store.record.specials, spec.rows, "held_out")
        ids = generator.permutation(start + np.flatnonzero(mask))[:left]
        parts.append(np.sort(ids))
        left -= len(ids)
        if left == 0:
            break
    chosen = np.concatenate(parts)
    if len(chosen) == 0:
        where = "the units that its statistics are from hold" if is_arriving else "it holds"
        raise SpecError(
            f"{spec.name}: held_out measures on rows of held-out documents, but of {store.url} {where} none: collect "
            "with tokens.held_out_fraction above 0, or leave held_out out"
        )
    return chosen


def _values(store: FeedStore, point: str, ids: Ints) -> torch.Tensor:
    """Float32 [b, D] of rows that are sorted unit by unit; each chunk is read once."""
    chunk_rows = store.record.chunk_rows
    parts = [torch.zeros(0, store.hook_points[point])]
    for rows in _runs(ids, chunk_rows):
        first = int(rows[0])
        values = store.read_values(point, first, int(rows[-1]) + 1)[rows - first]
        if not np.isfinite(values).all():
            bad = int(rows[~np.isfinite(values).all(axis=1)][0])
            raise DivergenceError(
                f"held-out row {bad} of {store.url} at {point}: expected finite activations, got NaN or infinity; "
                "collect in a wider dtype, or leave held_out out"
            )
        parts.append(torch.from_numpy(np.ascontiguousarray(values)))
    return torch.cat(parts)


def _runs(ids: Ints, chunk_rows: int) -> Iterator[Ints]:
    """Neighbours of one chunk."""
    chunks = ids // chunk_rows
    edges = [0, *(np.flatnonzero(np.diff(chunks)) + 1).tolist(), len(ids)]
    yield from (ids[start:stop] for start, stop in pairwise(edges) if stop > start)


def _without_large(store: FeedStore, spec: TrainSpec, acts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What ``rows.max_norm_multiple`` leaves."""
    if not spec.rows.max_norm_multiple:
        return acts
    kept = torch.ones(len(next(iter(acts.values()))), dtype=torch.bool)
    for point, rows_BD in acts.items():
        limit = spec.rows.max_norm_multiple * median_norm(store.statistics[point])
        kept &= torch.linalg.vector_norm(rows_BD.double(), dim=1) <= limit
    return {point: rows_BD[kept] for point, rows_BD in acts.items()}
