"""A small store with planted structure, written once a session through the real writer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store.rows import TokenRows
from pipeline.store.words import to_words
from pipeline.store.writer import StoreWriter
from schemas.fields import LOSSY, Dtype, Layout
from schemas.fingerprint import fingerprint
from schemas.store import PassRecord, StoreRecord
from schemas.train import TrainSpec

sys.path.insert(0, str(Path(__file__).parent))

NUM_ROWS, CONTEXT, D = 2400, 12, 16
POINTS = ("resid", "mlp_in", "mlp_out")


def planted(seed: int, *, poison: bool = False) -> dict[str, np.ndarray[Any, Any]]:
    """Rows that are sums of 3 of 40 directions plus a mean; mlp_out is a function of mlp_in."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(40, D))
    codes = np.zeros((NUM_ROWS, 40))
    for row in codes:
        row[random.choice(40, 3, replace=False)] = random.uniform(1, 2, 3)
    resid = codes @ directions + random.normal(size=D)
    mlp_in = codes @ random.normal(size=(40, D))
    mlp_out = np.maximum(mlp_in @ random.normal(size=(D, D)), 0)
    if poison:
        resid[NUM_ROWS // 2] = np.inf
    return dict(zip(POINTS, (resid, mlp_in, mlp_out), strict=True))


def write_store(
    url: str,
    seed: int = 0,
    *,
    poison: bool = False,
    dtype: Dtype = "bfloat16",
    layout: Layout = "zarr",
    held_out_every: int = 20,
) -> str:
    identity = {"model": {"path": "planted"}, "seed": seed, "dtype": dtype, "layout": layout}
    record = StoreRecord(
        fingerprint=fingerprint(identity), identity=identity, table_fingerprint="table", layout=layout, dtype=dtype,
        lossy=dtype in LOSSY,
        chunk_rows=100, shard_rows=600, codec="none", table_url="", specials={"bos": 0}, spec={}, versions={},
    )  # fmt: skip
    passed = PassRecord(hook_points=dict.fromkeys(POINTS, D), batch_tokens=64)
    writer = StoreWriter.open(url, record, passed, num_rows=NUM_ROWS)
    given: Dtype = "float32" if dtype in LOSSY else dtype
    arrays = {p: to_words(a.astype(np.float32), given) for p, a in planted(seed, poison=poison).items()}
    rows = np.arange(NUM_ROWS)
    position = rows % CONTEXT
    tokens = TokenRows(
        row=rows, token_id=np.where(position == 0, 0, 1 + rows % 50), document_id=rows // CONTEXT,
        position=position, held_out=(rows // CONTEXT) % held_out_every == held_out_every - 1,
    )  # fmt: skip
    for unit in range(writer.num_units):
        part = slice(*writer.unit_rows(unit))
        words = {point: array[part] for point, array in arrays.items()}
        writer.write_unit(unit, words, tokens.slice(part.start, part.stop), worker="test", attempt=0, seconds={})
    writer.finish()
    return url


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_store(str(tmp_path_factory.mktemp("planted") / "store"))


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Writes the same rows again, in another dtype or layout; the URL."""
    return lambda **fields: write_store(str(tmp_path_factory.mktemp("planted") / "store"), **fields)


@pytest.fixture
def late_store(tmp_path: Path) -> str:
    """Another model's activations of the same tokens."""
    return write_store(str(tmp_path / "late"), seed=1)


@pytest.fixture
def make_spec(store_url: str, tmp_path: Path) -> Callable[..., TrainSpec]:
    """A job with an SAE, a skip transcoder and an L1 dictionary; fields can be replaced."""

    def make(output: str = "out", **fields: Any) -> TrainSpec:
        topk = {"kind": "topk", "k": 3, "aux_k": 8, "dead_after_tokens": 300}
        common = {"num_latents": 48, "activation": topk, "learning_rate": 5e-3}
        facts: dict[str, Any] = {
            "store": store_url,
            "dictionaries": [
                {"name": "sae", "sources": ["resid"], **common},
                {"name": "skip", "sources": ["mlp_in"], "targets": ["mlp_out"], "skip": True, **common},
                {
                    "name": "l1",
                    "sources": ["resid"],
                    **common,
                    "activation": {"kind": "relu_l1", "l1_coefficient": 0.5},
                },
            ],
            "batch_rows": 100,
            "num_epochs": 2,
            "order": {"window_chunks": 8},
            "checkpoint_every_steps": 7,
            "log_every_steps": 5,
            "trackers": [],
            "output": str(tmp_path / output),
        }
        return TrainSpec.model_validate(facts | fields)

    return make
