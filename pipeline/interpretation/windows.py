"""Contexts of a store cut into windows of equal length, half of them for explaining and half for scoring.

1. choose whole contexts in a seeded order                   contexts.choose_contexts
2. deal them out to the two halves                           halves
3. cut each into windows; leave out the short ends           cut
4. leave out of scoring what is word for word in explaining

T rows of a half, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.contexts import Bounds, choose_contexts, read_tokens
from pipeline.store.joined import AnyStore
from schemas.errors import SpecError
from schemas.interpret import InterpretSpec


@dataclass(frozen=True)
class Windows:
    """Stretches of consecutive tokens, one after the other."""

    row: npt.NDArray[np.int64]
    """[T] row in the store."""
    token_id: npt.NDArray[np.int32]
    """[T]."""
    eligible: npt.NDArray[np.bool_]
    """[T] rows that the dictionary is applied to; on others no latent is on."""
    edges: npt.NDArray[np.int64]
    """[W + 1] first row of each window, as an index into the above, and T."""

    def __len__(self) -> int:
        return len(self.edges) - 1

    def window(self, index: int) -> slice:
        """The rows of a window."""
        return slice(int(self.edges[index]), int(self.edges[index + 1]))

    def greatest(self, value_T: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Largest of the values in each window, [W]."""
        return np.maximum.reduceat(value_T, self.edges[:-1]) if len(self) else value_T[:0]

    def masked(self, eligible: npt.NDArray[np.bool_]) -> Windows:
        """The same windows for a dictionary that other rows are eligible for."""
        return Windows(self.row, self.token_id, eligible, self.edges)

    def taken(self, kept_W: npt.NDArray[np.bool_]) -> Windows:
        """Some of the windows."""
        lengths = np.diff(self.edges)
        rows = np.repeat(kept_W, lengths)
        edges = np.concatenate([[0], np.cumsum(lengths[kept_W])])
        return Windows(self.row[rows], self.token_id[rows], self.eligible[rows], edges)


def halves(store: AnyStore, spec: InterpretSpec) -> tuple[Windows, Windows]:
    """Windows for explaining and for scoring; all rows are eligible.

    Raises:
        SpecError: the store has too few contexts for two halves.
    """
    contexts = choose_contexts(store, num_rows=spec.rows, split="all", seed=spec.seed)
    generator = np.random.Generator(np.random.Philox([spec.seed, 1]))
    is_first = generator.permutation(len(contexts)) < (len(contexts) + 1) // 2
    first, second = (
        cut(store, [bounds for bounds, own in zip(contexts, mine, strict=True) if own], spec.context_tokens)
        for mine in (is_first, ~is_first)
    )
    seen = set(_texts(first))
    second = second.taken(np.array([text not in seen for text in _texts(second)], dtype=np.bool_))
    if not len(first) or not len(second):
        raise SpecError(
            f"{store.url}: {spec.rows} rows give {len(first)} windows of {spec.context_tokens} tokens for explaining "
            f"and {len(second)} others for scoring; raise rows, lower context_tokens, or collect more text"
        )
    return first, second


def cut(store: AnyStore, contexts: Sequence[Bounds], length: int) -> Windows:
    """Windows of ``length`` tokens, and what is left of a context if it is at least half as long."""
    starts = [
        (start, min(start + length, stop))
        for first, stop in contexts
        for start in range(first, stop, length)
        if min(start + length, stop) - start >= length / 2
    ]
    edges = np.concatenate([[0], np.cumsum([stop - start for start, stop in starts], dtype=np.int64)]).astype(np.int64)
    if not starts:
        return Windows(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.bool_), edges)
    tokens = read_tokens(store, starts)
    return Windows(tokens.row, tokens.token_id, np.ones(len(tokens), np.bool_), edges)


def _texts(windows: Windows) -> list[bytes]:
    return [windows.token_id[windows.window(index)].tobytes() for index in range(len(windows))]
