"""A small store with planted structure and a job that trains on it in a few seconds."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.store.rows import TokenRows
from pipeline.store.words import to_words
from pipeline.store.writer import StoreWriter
from schemas.fingerprint import fingerprint
from schemas.store import PassRecord, StoreRecord
from schemas.train import TrainSpec

NUM_ROWS, D = 1600, 16


def write_store(url: str, poison: bool = False) -> str:
    """Sums of 3 of 40 directions at the hook point ``resid``; ``poison`` puts an infinity into one row."""
    random = np.random.default_rng(0)
    codes = np.zeros((NUM_ROWS, 40))
    for row in codes:
        row[random.choice(40, 3, replace=False)] = random.uniform(1, 2, 3)
    acts = codes @ random.normal(size=(40, D))
    if poison:
        acts[NUM_ROWS // 2 + 3, 3] = np.inf
    identity = {"model": {"path": "planted"}, "poison": poison}
    record = StoreRecord(
        fingerprint=fingerprint(identity), identity=identity, table_fingerprint="table", dtype="bfloat16",
        chunk_rows=100, shard_rows=NUM_ROWS, codec="none", table_url="", specials={}, spec={}, versions={},
    )  # fmt: skip
    writer = StoreWriter.open(url, record, PassRecord(hook_points={"resid": D}, batch_tokens=64), num_rows=NUM_ROWS)
    rows = np.arange(NUM_ROWS)
    tokens = TokenRows(
        row=rows, token_id=rows % 50, document_id=rows // 10, position=rows % 10, held_out=np.zeros(NUM_ROWS, bool)
    )
    words = to_words(acts.astype(np.float32), "bfloat16")
    writer.write_unit(0, {"resid": words}, tokens, worker="test", attempt=0, seconds={})
    writer.finish()
    return url


def train_spec(store_url: str, output: str, **fields: Any) -> TrainSpec:
    """Two ranks, one dictionary; fields can be replaced."""
    activation = {"kind": "topk", "k": 3, "aux_k": 8, "dead_after_tokens": 300}
    facts = {
        "store": store_url,
        "dictionaries": [{"name": "sae", "sources": ["resid"], "num_latents": 64, "activation": activation}],
        "batch_rows": 96,
        "num_epochs": 12,
        "checkpoint_every_steps": 20,
        "log_every_steps": 1,
        "trackers": [],
        "workers": {"num_workers": 2},
        "output": output,
    }
    return TrainSpec.model_validate(facts | fields)
