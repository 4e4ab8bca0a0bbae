"""A store to shuffle, with two passes, written through the real writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store.rows import TokenRows
from pipeline.store.words import to_words
from pipeline.store.writer import StoreWriter
from schemas.fingerprint import fingerprint
from schemas.shuffle import ShuffleSpec
from schemas.store import PassRecord, StoreRecord

PASSES = ({"resid": 6, "mlp": 3}, {"attn": 4})
CONTEXT = 12
ROW_BYTES = 33 + 2 * 13


def write_source(
    url: str, num_rows: int = 500, *, model: str = "counting", table: str = "t" * 64, **storage: Any
) -> StoreRecord:
    """Row r has at ``resid`` the numbers r // 64 and r % 64, which bfloat16 holds exactly, and random ones."""
    facts = {"dtype": "bfloat16", "chunk_rows": 8, "shard_rows": 32, "codec": "none", **storage}
    identity = {"model": {"path": model}, "table": table, "storage": facts}
    record = StoreRecord(
        fingerprint=fingerprint(identity), identity=identity, table_fingerprint=table, table_url="",
        specials={"bos": 0}, spec={"kind": "collect"}, versions={"torch": "0"}, **facts,
    )  # fmt: skip
    row = np.arange(num_rows)
    tokens = TokenRows(row, row * 7 % 50, row // 40, row % CONTEXT, row // 40 % 3 == 1)
    writers = []
    for number, one in enumerate(PASSES):
        rng = np.random.default_rng(number)
        acts = {hook: rng.standard_normal((5000, width)).astype(np.float32)[:num_rows] for hook, width in one.items()}
        if "resid" in acts:
            acts["resid"][:, 0], acts["resid"][:, 1] = row // 64, row % 64
        words = {hook: to_words(values, facts["dtype"]) for hook, values in acts.items()}
        record_of_pass = PassRecord(hook_points=one, batch_tokens=8 * len(one), outlier_tokens=2)
        writer = StoreWriter.open(url, record, record_of_pass, num_rows=num_rows)
        for unit in range(writer.num_units):
            start, stop = writer.unit_rows(unit)
            arrays = {hook: array[start:stop] for hook, array in words.items()}
            writer.write_unit(unit, arrays, tokens.slice(start, stop), worker="test", attempt=0, seconds={})
        writers.append(writer)
    for writer in writers:
        writer.finish()
    return record


def shuffle_spec(source: str, output: Path | str, *, memory: int = 2**20, **facts: Any) -> ShuffleSpec:
    """``memory`` in bytes of rows."""
    workers = {"memory": f"{memory}B", "num_workers": 2, **facts.pop("workers", {})}
    return ShuffleSpec.model_validate({"store": source, "output": str(output), "workers": workers, **facts})


def objects_of(url: str | Path) -> dict[str, bytes]:
    """Path -> bytes of every file of a store, but for those that say when, by whom or with what memory,
    and what kills have left."""
    root = Path(url)
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".partial"]
    found = {str(path.relative_to(root)): path.read_bytes() for path in files}
    return {key: data for key, data in found.items() if not key.startswith(("ledger/", "zarr.json", "log/", "leases/"))}
