"""Which rows of a store an epoch is made of: the split, the row filter, and nothing else.

Memory: two bits a row (250 MB for 10**9 rows), plus 16 bytes a chunk. Every rank scans the tokens of the whole store
once at the start; with ``max_norm_multiple`` it also streams the activations of the hook points in use once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.order.contexts import ContextIndex, ContextPairs, ScatteredContextPairs
from pipeline.order.keys import Split
from pipeline.store.statistics import median_norm
from schemas.errors import DivergenceError
from schemas.train import RowFilter

if TYPE_CHECKING:
    from pipeline.store.arriving import FeedStore
    from pipeline.store.rows import TokenRows

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class EligibleRows:
    """A set of rows, asked for by chunk."""

    def __init__(self, masks: Iterator[Mask], *, chunk_rows: int, same_context_rate: float = 0.0) -> None:
        """``masks``: one boolean array a chunk, in order; all but the last have ``chunk_rows`` entries."""
        self.chunk_rows = chunk_rows
        self.same_context_rate = same_context_rate
        """Chance that two different eligible rows, drawn at random from the whole store, are of one context."""
        self.contexts: ContextIndex | None = None
        """The context of every row; None of a store in another order than its text's: its token rows have it."""
        packed: list[npt.NDArray[np.uint8]] = []
        counts: list[int] = []
        for mask in masks:
            counts.append(int(mask.sum()))
            packed.append(np.packbits(np.pad(mask, (0, chunk_rows - len(mask)))))
        self._bits = np.stack(packed) if packed else np.zeros((0, -(-chunk_rows // 8)), dtype=np.uint8)
        self.counts: Ints = np.array(counts, dtype=np.int64)
        """Eligible rows of each chunk."""

    @classmethod
    def of_mask(cls, mask: Mask, *, chunk_rows: int) -> EligibleRows:
        """From one boolean for each row of the store."""
        return cls((mask[at : at + chunk_rows] for at in range(0, len(mask), chunk_rows)), chunk_rows=chunk_rows)

    @property
    def num_rows(self) -> int:
        """How many rows are eligible."""
        return int(self.counts.sum())

    def rows_of(self, chunk: int) -> Ints:
        """The chunk's eligible row ids, ascending."""
        return np.flatnonzero(np.unpackbits(self._bits[chunk], count=self.chunk_rows)) + chunk * self.chunk_rows

    def marks_of(self, chunks: Ints) -> npt.NDArray[np.uint8]:
        """1 for each eligible row of several chunks, [W, chunk_rows]."""
        return np.unpackbits(self._bits[chunks], axis=1, count=self.chunk_rows)


def scan(store: FeedStore, hook_points: Sequence[str], rows: RowFilter, split: Split) -> EligibleRows:
    """Read the store's tokens (and norms, where the filter asks for them) and decide row by row.

    Raises:
        DivergenceError: an eligible row holds NaN or an infinity at a hook point in use.
    """
    limits = {hook: _norm_limit(store, hook, rows) for hook in hook_points}
    watched = {hook: limit for hook, limit in limits.items() if limit is not None}
    is_shuffled = store.num_rows > 0 and store.tokens(0, 1).source_row is not None
    contexts = ScatteredContextPairs() if is_shuffled else ContextPairs()
    begins: list[npt.NDArray[np.uint8]] = []

    def masks() -> Iterator[Mask]:
        for tokens in _slabs(store):
            mask = token_mask(tokens, store.record.specials, rows, split)
            starts = np.arange(0, len(mask), store.record.chunk_rows)
            pieces = np.split(mask, starts[1:])
            for piece, start in zip(pieces, starts, strict=True):
                _exclude_by_norm(store, watched, int(tokens.row[start]), piece, rows)
            contexts.add(tokens.context[mask])
            if not is_shuffled:
                begins.extend(np.packbits(piece) for piece in np.split(tokens.position == 0, starts[1:]))
            yield from pieces

    eligible = EligibleRows(masks(), chunk_rows=store.record.chunk_rows)
    eligible.same_context_rate = contexts.rate()
    if not is_shuffled:
        eligible.contexts = ContextIndex(begins, chunk_rows=store.record.chunk_rows)
    return eligible


def _slabs(store: FeedStore) -> Iterator[TokenRows]:
    """The tokens unit by unit; a unit is a whole number of chunks, but for the last."""
    for start in range(0, store.num_rows, store.record.shard_rows):
        yield store.tokens(start, min(start + store.record.shard_rows, store.num_rows))


def token_mask(tokens: TokenRows, specials: dict[str, int], rows: RowFilter, split: Split) -> Mask:
    """[T] what split, special tokens and positions leave."""
    mask = np.ones(len(tokens), dtype=np.bool_)
    if split != "all":
        mask &= tokens.held_out == (split == "held_out")
    if rows.exclude_specials and specials:
        mask &= ~np.isin(tokens.token_id, list(specials.values()))
    if rows.exclude_positions:
        mask &= ~np.isin(tokens.position, rows.exclude_positions)
    return mask


def _norm_limit(store: FeedStore, hook: str, rows: RowFilter) -> float | None:
    """Largest norm that the hook point's rows may have; None where the rows need not be looked at."""
    statistics = store.statistics[hook]
    if rows.max_norm_multiple > 0:
        return rows.max_norm_multiple * median_norm(statistics)
    return float("inf") if statistics.num_nan + statistics.num_inf else None


def _exclude_by_norm(store: FeedStore, limits: dict[str, float], start: int, mask: Mask, rows: RowFilter) -> None:
    """Clear, in place, the rows of one chunk whose norm is beyond the limit of any hook point."""
    for hook, limit in limits.items():
        acts_TD = store.read_values(hook, start, start + len(mask))
        # float64: the square of a finite float32 may be infinite.
        norms_T = np.sqrt(np.einsum("td,td->t", acts_TD, acts_TD, dtype=np.float64))
        if rows.max_norm_multiple > 0:
            mask &= norms_T <= limit  # a NaN compares false and goes too
            continue
        bad = np.flatnonzero(mask & ~np.isfinite(norms_T))
        if len(bad):
            raise DivergenceError(
                f"row {start + int(bad[0])} of {store.url} at {hook}: expected finite activations, "
                f"got NaN or infinity\n"
                f"(the store counts {store.statistics[hook].num_nan} rows with NaN and "
                f"{store.statistics[hook].num_inf} with infinities there). Set rows.max_norm_multiple to leave such "
                "rows out, or collect in a wider dtype."
            )
