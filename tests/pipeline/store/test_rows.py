"""Token rows and their Parquet form."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.rows import TokenRows
from schemas.errors import CorruptionError


def rows_of(count: int, seed: int = 0) -> TokenRows:
    rng = np.random.default_rng(seed)
    big = rng.integers(0, 2**62, count)
    return TokenRows(big, rng.integers(0, 2**31, count), big[::-1], np.arange(count), rng.random(count) < 0.5)


@settings(deadline=None)
@given(count=st.integers(0, 200), seed=st.integers(0, 9))
def test_parquet_keeps_every_value_and_the_same_rows_give_the_same_bytes(count: int, seed: int) -> None:
    rows = rows_of(count, seed)
    data = rows.to_parquet()
    assert data == rows_of(count, seed).to_parquet()
    assert TokenRows.from_parquet(data) == rows


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 50), max_size=5))
def test_slices_join_to_the_whole(cuts: list[int]) -> None:
    rows = rows_of(50)
    places = [0, *sorted(cuts), 50]
    parts = [rows.slice(a, b) for a, b in itertools.pairwise(places)]
    assert TokenRows.concat(parts) == rows
    assert TokenRows.concat(iter([])) == TokenRows.empty()


def test_columns_have_their_types_and_one_length() -> None:
    rows = rows_of(3)
    types = [rows.row.dtype, rows.token_id.dtype, rows.document_id.dtype, rows.position.dtype, rows.held_out.dtype]
    assert types == [np.int64, np.int32, np.int64, np.int32, np.bool_]
    assert hash(rows) == hash(rows_of(3))
    with pytest.raises(ValueError, match="one length"):
        TokenRows(np.arange(3), np.arange(2), np.arange(3), np.arange(3), np.zeros(3, dtype=bool))


def test_what_is_not_token_rows_is_refused() -> None:
    with pytest.raises(CorruptionError, match=r"tokens/0\.parquet is not readable"):
        TokenRows.from_parquet(b"PAR1 nothing PAR1", where="tokens/0.parquet")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"row": [1]}), sink)
    with pytest.raises(CorruptionError):
        TokenRows.from_parquet(bytes(sink.getvalue()))


def test_rows_of_a_shuffled_store_know_where_they_were() -> None:
    source_row = np.array([7, 2, 9])
    rows = TokenRows([0, 1, 2], [5, 6, 7], [1, 0, 1], [3, 2, 0], [True, False, False], source_row)
    assert TokenRows.from_parquet(rows.to_parquet()) == rows
    assert rows.context.tolist() == [4, 0, 9]
    assert rows.slice(1, 3).source_row.tolist() == [2, 9]
    assert TokenRows.concat([rows.slice(0, 1), rows.slice(1, 3)]) == rows
    plain = TokenRows(*(getattr(rows, name) for name in ("row", "token_id", "document_id", "position", "held_out")))
    assert plain != rows
    assert plain.source_row is None
    assert plain.context.tolist() == [-3, -1, 2]
    assert TokenRows.from_parquet(plain.to_parquet()) == plain
