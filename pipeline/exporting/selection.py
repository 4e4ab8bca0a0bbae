"""Which rows of a store an export takes, in the order of the store.

Chosen by what a row is (split, document), the rows are found by reading the store's tokens: once in full to count, then
again unit by unit. Memory is 8 bytes for each unit of the store and the tokens of one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store import layout
from pipeline.store.reader import Store
from pipeline.store.rows import TokenRows
from schemas.errors import SpecError
from schemas.export import AllRows, DocumentRows, RowChoice, RowRange, SplitRows

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class RowSelection:
    """Rows of ``store``, numbered from 0 in its order."""

    def __init__(self, store: Store, first: int, counts: list[int], chosen: Callable[[int], Rows]) -> None:
        """``counts``: rows that are taken of each unit from the unit of row ``first`` on; ``chosen``: those of a unit,
        ascending. Use ``select``."""
        self._store = store
        self._first_unit = first // store.record.shard_rows
        self._ends = [*accumulate(counts)]
        self._chosen = chosen
        self.num_rows = self._ends[-1] if self._ends else 0

    def rows(self, start: int, stop: int) -> Rows:
        """Rows of the store [stop - start], ascending, that are the selection's rows [start, stop)."""
        found = []
        place = bisect_right(self._ends, start)
        while start < stop:
            before = self._ends[place - 1] if place else 0
            end = min(stop, self._ends[place])
            found.append(self._chosen(self._first_unit + place)[start - before : end - before])
            start, place = end, place + 1
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def select(store: Store, choice: RowChoice) -> RowSelection:
    """Raises: SpecError (no such rows, or none at all)."""
    if isinstance(choice, AllRows):
        return _consecutive(store, 0, store.num_rows)
    if isinstance(choice, RowRange):
        if choice.stop > store.num_rows:
            raise SpecError(f"rows {choice.start}:{choice.stop}: the store at {store.url} has {store.num_rows} rows")
        return _consecutive(store, choice.start, choice.stop)
    matches = _matcher(choice)

    @lru_cache(maxsize=2)
    def chosen(unit: int) -> Rows:
        start, stop = layout.unit_rows(unit, store.num_rows, store.record.shard_rows)
        return start + np.flatnonzero(matches(store.tokens(start, stop)))

    selection = RowSelection(store, 0, [len(chosen(unit)) for unit in range(store.num_units)], chosen)
    if not selection.num_rows:
        raise SpecError(f"the store at {store.url} has no row of {_said(choice)}")
    return selection


def is_aligned(choice: RowChoice) -> bool:
    """Whether row r of the selection is row r of the store."""
    return isinstance(choice, AllRows) or (isinstance(choice, RowRange) and choice.start == 0)


def facts(choice: RowChoice) -> dict[str, Any]:
    """What decides which rows these are; equal for every selection whose rows are the store's first ones, so that a
    longer one continues a shorter."""
    if is_aligned(choice):
        return {"kind": "all"}
    if isinstance(choice, DocumentRows):
        return {"kind": "documents", "documents": sorted({*choice.documents})}
    return choice.model_dump(mode="json")


def _consecutive(store: Store, start: int, stop: int) -> RowSelection:
    size = store.record.shard_rows

    def chosen(unit: int) -> Rows:
        return np.arange(max(start, unit * size), min(stop, (unit + 1) * size))

    units = range(start // size, layout.num_units(stop, size))
    return RowSelection(store, start, [len(chosen(unit)) for unit in units], chosen)


def _matcher(choice: SplitRows | DocumentRows) -> Callable[[TokenRows], Mask]:
    if isinstance(choice, SplitRows):
        wanted = choice.split == "held_out"
        return lambda tokens: tokens.held_out == wanted
    documents = np.unique(np.array(choice.documents, dtype=np.int64))
    return lambda tokens: np.isin(tokens.document_id, documents)


def _said(choice: SplitRows | DocumentRows) -> str:
    if isinstance(choice, SplitRows):
        return f"the split {choice.split}"
    named = ", ".join(map(str, choice.documents[:8])) + (", ..." if len(choice.documents) > 8 else "")
    return f"the documents {named}"
