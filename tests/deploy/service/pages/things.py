"""Stores, dictionaries and evaluations to be found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pipeline.store.rows import TokenRows
from pipeline.store.words import to_words
from pipeline.store.writer import StoreWriter
from schemas.dictionary import DictionaryRecord, DictionarySpec
from schemas.fingerprint import fingerprint
from schemas.store import PassRecord, StoreRecord

HOOK = "blocks.0.hook_resid_post"


def write_store(url: str, corpus: str, num_rows: int = 256, width: int = 8) -> None:
    spec = {"model": {"path": "tiny"}, "tokens": {"corpus": {"format": "text", "urls": [corpus]}}}
    identity = {"model": {"weights": "w" * 64}}
    record = StoreRecord(
        fingerprint=fingerprint(identity), identity=identity, table_fingerprint="t" * 64, dtype="bfloat16",
        chunk_rows=64, shard_rows=128, codec="none", table_url="", specials={}, spec=spec, versions={"headworks": "0"},
    )  # fmt: skip
    writer = StoreWriter.open(url, record, PassRecord(hook_points={HOOK: width}, batch_tokens=64), num_rows=num_rows)
    words = to_words(np.random.default_rng(0).standard_normal((num_rows, width), dtype=np.float32), "bfloat16")
    rows = np.arange(num_rows)
    tokens = TokenRows(
        row=rows, token_id=rows % 7, document_id=rows // 16, position=rows % 16, held_out=np.zeros(num_rows, np.bool_)
    )
    for unit in range(writer.num_units):
        start, stop = writer.unit_rows(unit)
        part = tokens.slice(start, stop)
        writer.write_unit(unit, {HOOK: words[start:stop]}, part, worker="test", attempt=0, seconds={})
    writer.finish()


def write_dictionary(folder: Path, name: str, *, l0: float, fvu: float) -> None:
    record = DictionaryRecord(
        spec=DictionarySpec(name=name, sources=[HOOK], num_latents=64), d_source={HOOK: 8}, d_target={HOOK: 8},
        scales={HOOK: 1.0}, store_fingerprint="f" * 64, table_fingerprint="t" * 64, model={}, train_spec={}, steps=7,
        tokens=700, metrics={"fvu": fvu, "l0": l0, "dead_share": 0.5}, weights_sha256=f"{name}-weights", versions={},
    )  # fmt: skip
    (folder / name).mkdir(parents=True)
    (folder / name / "dictionary.json").write_text(record.model_dump_json())


def write_evaluation(folder: Path, name: str, *, l0: float, fvu: float, weights: str = "", report: str = "") -> None:
    figures = {
        "rows": 1000,
        "fvu": fvu,
        "l0": l0,
        "dead_share": 0.25,
        "ce_recovered": None,
        "kind": "sparse autoencoder",
    }
    facts = {
        "format": 1, "identity": {"dictionaries": {name: weights or f"{name}-weights"}}, "rows": {"split": "held_out"},
        "dictionaries": {name: figures},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(facts))
    if report:
        (folder / "report.html").write_text(report)
