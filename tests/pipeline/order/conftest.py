"""A store written through the real writer, in which the activations of row r say r."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store.reader import Store
from pipeline.store.rows import TokenRows
from pipeline.store.words import to_words
from pipeline.store.writer import StoreWriter
from schemas.fields import LOSSY
from schemas.fingerprint import fingerprint
from schemas.store import PassRecord, StoreRecord

CONTEXT, CHUNK_ROWS, SHARD_ROWS = 12, 16, 96
WIDTHS = {"resid": 8, "mlp_out": 4}


@dataclass(frozen=True)
class Facts:
    """What the store was written from."""

    url: str
    tokens: TokenRows
    words: dict[str, np.ndarray[Any, Any]]

    def open(self) -> Store:
        return Store.open(self.url)


def write(
    url: str,
    *,
    num_rows: int,
    dtype: str = "bfloat16",
    layout: str = "zarr",
    codec: str = "none",
    spoil: dict[int, float] | None = None,
) -> Facts:
    """Contexts of 12 tokens that begin with special token 0; every tenth context is held out.

    Row r has at ``resid`` the numbers r // 64 + 1 and r % 64, which bfloat16 holds exactly, and random ones.
    ``spoil``: row -> value of all its channels at ``mlp_out``.
    """
    identity = {"model": "counting", "num_rows": num_rows, "dtype": dtype}
    record = StoreRecord(
        fingerprint=fingerprint(identity), identity=identity, table_fingerprint="table", dtype=dtype, layout=layout,
        lossy=dtype in LOSSY, chunk_rows=CHUNK_ROWS, shard_rows=SHARD_ROWS, codec=codec, table_url="",
        specials={"bos": 0, "eos": 3}, spec={}, versions={},
    )  # fmt: skip
    row = np.arange(num_rows)
    position, context = row % CONTEXT, row // CONTEXT
    token_id = np.where(position == 0, 0, np.where(row % 29 == 5, 3, 10 + row % 7))
    tokens = TokenRows(row, token_id, context, position, context % 10 == 9)
    acts = {hook: np.random.default_rng(1).normal(size=(num_rows, width)) for hook, width in WIDTHS.items()}
    acts["resid"][:, 0], acts["resid"][:, 1] = row // 64 + 1, row % 64
    for bad_row, value in (spoil or {}).items():
        acts["mlp_out"][bad_row] = value
    given = "float32" if dtype in LOSSY else dtype
    words = {hook: to_words(values.astype(np.float32), given) for hook, values in acts.items()}
    writer = StoreWriter.open(url, record, PassRecord(hook_points=WIDTHS, batch_tokens=64), num_rows=num_rows)
    for unit in range(writer.num_units):
        start, stop = writer.unit_rows(unit)
        arrays = {hook: array[start:stop] for hook, array in words.items()}
        writer.write_unit(unit, arrays, tokens.slice(start, stop), worker="test", attempt=0, seconds={})
    writer.finish()
    return Facts(url, tokens, words)


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """1003 rows: an odd last unit, chunk and context."""
    return write(str(tmp_path_factory.mktemp("order") / "store"), num_rows=1003)


@pytest.fixture
def store(counted: Facts) -> Store:
    return counted.open()


@pytest.fixture
def write_store(tmp_path: Path) -> Callable[..., Facts]:
    """A store of one's own, in a temporary folder or at a URL."""

    def make(name: str = "store", **facts: Any) -> Facts:
        url = name if "://" in name else str(tmp_path / name)
        return write(url, **{"num_rows": 400, **facts})

    return make
