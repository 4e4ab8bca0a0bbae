"""Estimates of how many rows a corpus makes, against the tables that are made of it."""

from __future__ import annotations

import gzip
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "collection"))

from small_job import save_model

from pipeline.planning import tokens
from pipeline.planning.tokens import estimate
from pipeline.tokens.table import build_table
from schemas.corpus import TokensSpec
from schemas.model import ModelSpec

NUM_DOCUMENTS = 600


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """With a tokenizer of one token for each byte."""
    return ModelSpec(path=str(save_model(tmp_path_factory.mktemp("model"))), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Documents of very unlike lengths."""
    source = random.Random(2)
    return ["".join(source.choices("abcdefgh ", k=int(math.exp(source.gauss(6, 1))))) for _ in range(NUM_DOCUMENTS)]


def corpus(kind: str, texts: list[str], folder: Path) -> dict[str, Any]:
    lines = [json.dumps({"text": text, "id": index}) for index, text in enumerate(texts)]
    if kind == "text":
        for index, text in enumerate(texts):
            (folder / f"{index}.txt").write_text(text)
        return {"format": "text", "urls": [f"{folder}/*.txt"]}
    if kind == "parquet":
        for start in range(0, len(texts), 200):
            table = pa.table({"text": texts[start : start + 200]})
            pq.write_table(
                table, folder / f"{start}.parquet", row_group_size=20, compression="none", use_dictionary=False
            )
        return {"format": "parquet", "urls": [f"{folder}/*.parquet"]}
    for start in range(0, len(texts), 200):
        content = ("\n".join(lines[start : start + 200]) + "\n").encode()
        path = folder / (f"{start}.jsonl.gz" if kind == "jsonl.gz" else f"{start}.jsonl")
        path.write_bytes(gzip.compress(content) if kind == "jsonl.gz" else content)
    return {"format": "jsonl", "urls": [f"{folder}/*.json*"]}


@pytest.mark.parametrize(
    "packing",
    [
        {"context_length": 32},
        {"mode": "document", "context_length": 64, "separator": "none"},
        {"mode": "document", "context_length": 64, "long_documents": "truncate"},
    ],
    ids=["packed", "document", "truncated"],
)
@pytest.mark.parametrize("kind", ["text", "jsonl", "jsonl.gz", "parquet"])
def test_a_sample_tells_the_whole(
    kind: str, packing: dict[str, Any], texts: list[str], model: ModelSpec, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "corpus").mkdir()
    spec = TokensSpec.model_validate({"corpus": corpus(kind, texts, tmp_path / "corpus"), "packing": packing})
    table = build_table(spec, model, url=str(tmp_path / "table"), shard_rows=64)
    monkeypatch.setattr(tokens, "SAMPLE_BYTES", 60_000)
    monkeypatch.setattr(tokens, "_CLUSTER_BYTES", 4_000)
    found = estimate(spec, model)
    # A fifth of the text was read.
    assert len(found.sample) < 0.45 * table.num_rows
    assert found.relative_error < 0.2
    assert found.num_rows == pytest.approx(table.num_rows, rel=3.5 * max(found.relative_error, 0.01))
    assert found.at_least < table.num_rows
    assert found.specials == table.specials
    assert estimate(spec, model).num_rows == found.num_rows


def test_a_small_corpus_is_read_whole(texts: list[str], model: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    facts = {"corpus": corpus("text", texts, tmp_path / "corpus"), "packing": {"context_length": 32}}
    spec = TokensSpec.model_validate(facts)
    found = estimate(spec, model)
    table = build_table(spec, model, url=str(tmp_path / "table"), shard_rows=64)
    assert found.relative_error == 0
    # But for where parts end: the table has several, the sample is one.
    assert found.num_rows == pytest.approx(table.num_rows, rel=1e-3)
    assert found.mean_context == pytest.approx(32, rel=0.02)
