"""Finding rows by what they are: a document, a context, a token. Reads token rows, never activations.

A store keeps no index. What a document search needs is in the Parquet footers of the token rows: least and greatest
document id of each unit. They are read once for each opened store, one small request a unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store import layout
from pipeline.store.ledger import in_order
from pipeline.store.rows import TokenRows
from schemas.errors import CorruptionError, SpecError

if TYPE_CHECKING:
    from pipeline.store.reader import Store

Ints = npt.NDArray[np.int64]

_FOOTER_BYTES = 2**14
_ALL = (-(2**63), 2**63 - 1)


class DocumentRanges:
    """Which units can hold a document, of one opened store."""

    def __init__(self, store: Store) -> None:
        sizes = store.objects.sizes(f"{layout.TOKENS}/")
        self._units = [unit for unit in range(store.num_units) if layout.tokens_key(unit) in sizes]

        def limits(unit: int) -> tuple[int, int]:
            key = layout.tokens_key(unit)
            tail = store.objects.read_range(key, max(0, sizes[key] - _FOOTER_BYTES), sizes[key])
            return _document_limits(tail, f"{store.url}/{key}")

        self._limits = np.array([*in_order(store.objects, limits, self._units)], dtype=np.int64).reshape(-1, 2)

    def units_of(self, document_id: int) -> list[int]:
        """Ascending."""
        inside = (self._limits[:, 0] <= document_id) & (document_id <= self._limits[:, 1])
        return [self._units[place] for place in np.flatnonzero(inside).tolist()]


def _document_limits(tail: bytes, where: str) -> tuple[int, int]:
    """Least and greatest document id by the footer at the end of ``tail``; everything where the footer does not say."""
    try:
        facts = pq.read_metadata(pa.BufferReader(tail))
    except (pa.ArrowException, OSError) as exc:
        raise CorruptionError(f"{where} is not readable Parquet: {exc}") from exc
    column = facts.schema.names.index("document_id")
    found = [facts.row_group(group).column(column).statistics for group in range(facts.num_row_groups)]
    if any(one is None or not one.has_min_max for one in found):
        return _ALL
    return min(one.min for one in found), max(one.max for one in found)


def document_rows(store: Store, ranges: DocumentRanges, document_id: int) -> TokenRows:
    """All rows of a document, ascending, the special tokens before it included.

    Raises:
        SpecError: no row is of that document.
    """
    parts = []
    for unit in ranges.units_of(document_id):
        tokens = store.tokens(*layout.unit_rows(unit, store.num_rows, store.record.shard_rows))
        parts.append(tokens.take(np.flatnonzero(tokens.document_id == document_id)))
    found = TokenRows.concat(parts)
    if not len(found):
        raise SpecError(f"no row of the store at {store.url} is of document {document_id}")
    return found


def context_rows(store: Store, row: int) -> TokenRows:
    """The rows of the context that holds ``row``: what the model saw at once.

    Raises:
        SpecError: there is no such row, or the store's rows are not in the order of their text.
    """
    here = store.tokens(row, row + 1)
    if here.source_row is not None:
        raise SpecError(
            f"the rows of the store at {store.url} are not in the order of their text (it was shuffled, or has a part "
            f"of the rows): row {row} is row {int(here.source_row[0])} of the store it was made from; look there"
        )
    start = row - int(here.position[0])
    stop = start + 1
    for tokens in _slabs(store, start + 1):
        begins = np.flatnonzero(tokens.position == 0)
        stop = int(tokens.row[begins[0]]) if len(begins) else int(tokens.row[-1]) + 1
        if len(begins):
            break
    return store.tokens(start, stop)


def token_rows(store: Store, token_id: int, *, limit: int | None) -> Ints:
    """Rows that hold a token, ascending, the first ``limit`` of them. Reads the tokens up to there."""
    found: list[Ints] = []
    left = store.num_rows if limit is None else limit
    for tokens in _slabs(store, 0):
        if left <= 0:
            break
        found.append(tokens.row[tokens.token_id == token_id][:left])
        left -= len(found[-1])
    return np.concatenate([np.empty(0, np.int64), *found])


def _slabs(store: Store, start: int) -> Iterator[TokenRows]:
    """The tokens from a row on, unit by unit."""
    size = store.record.shard_rows
    while start < store.num_rows:
        stop = min((start // size + 1) * size, store.num_rows)
        yield store.tokens(start, stop)
        start = stop
