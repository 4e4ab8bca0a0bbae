"""A store to export, with two passes, written through the real writer; its documents lie across contexts and units."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.store.reader import Store
from pipeline.store.rows import TokenRows
from pipeline.store.words import to_words
from pipeline.store.writer import StoreWriter
from schemas.fields import LOSSY
from schemas.fingerprint import fingerprint
from schemas.store import PassRecord, StoreRecord

PASSES = ({"resid": 6, "mlp": 3}, {"attn": 4})
CONTEXT, CHUNK_ROWS, SHARD_ROWS = 10, 8, 32


def write_source(
    url: str, *, num_rows: int = 150, dtype: str = "bfloat16", layout: str = "zarr", codec: str = "none",
    words: Any = None, short: bool = False, statistics: dict[str, Any] | None = None,
) -> Store:  # fmt: skip
    """Contexts of ten tokens, every third held out, documents of seven; ``short``: the fifth context has four tokens.
    ``words``: [T, 6] of the hook point ``resid``, in place of random numbers."""
    storage = {
        "layout": layout, "dtype": dtype, "lossy": dtype in LOSSY, "chunk_rows": CHUNK_ROWS, "shard_rows": SHARD_ROWS,
        "codec": codec,
    }  # fmt: skip
    identity = {"model": {"dtype": "float32"}, "table": "t" * 64, "storage": storage}
    record = StoreRecord(
        fingerprint=fingerprint(identity), identity=identity, table_fingerprint="t" * 64, **storage,
        table_url="tokens", specials={"bos": 0}, spec={"kind": "collect"}, versions={"headworks": "0"},
    )  # fmt: skip
    tokens = make_tokens(num_rows, short=short)
    rng = np.random.default_rng(3)
    for hooks in PASSES:
        arrays = {
            hook: to_words(
                (rng.standard_normal((num_rows, width)) * 3).astype(np.float32),
                "float32" if dtype in LOSSY else dtype,
            )
            for hook, width in hooks.items()
        }
        if words is not None and "resid" in arrays:
            arrays["resid"] = words
        one = PassRecord(hook_points=hooks, batch_tokens=16, **(statistics or {}))
        writer = StoreWriter.open(url, record, one, num_rows=num_rows)
        for unit in range(writer.num_units):
            start, stop = writer.unit_rows(unit)
            cut = {hook: held[start:stop] for hook, held in arrays.items()}
            writer.write_unit(unit, cut, tokens.slice(start, stop), worker="w", attempt=0, seconds={})
        writer.finish()
    return Store.open(url)


def make_tokens(num_rows: int, *, short: bool) -> TokenRows:
    lengths = [CONTEXT] * (num_rows // CONTEXT + 2)
    if short:
        lengths[4] = 4
    context = np.repeat(np.arange(len(lengths)), lengths)[:num_rows]
    position = np.concatenate([np.arange(length) for length in lengths])[:num_rows]
    row = np.arange(num_rows)
    return TokenRows(row, row * 7 % 50, row // 7, position, context % 3 == 1)
