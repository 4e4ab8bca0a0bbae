"""A training that follows a store which another run collects: what a rank does, without a Ray around it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from small_job import HOOKS, built_table, small_spec

from pipeline.collection.prepare import prepare
from pipeline.collection.unit import UnitCollector
from pipeline.store.leases import held
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.training import engine
from pipeline.training.world import SingleWorld
from schemas.errors import MissingError, SpecError
from schemas.train import TrainSpec
from workers.live_blocks import FeedSource
from workers.progress import Progress
from workers.train import run_train

READER = (0, 0, 1)


def train_spec(store: str, output: Path, **fields: Any) -> TrainSpec:
    activation = {"kind": "topk", "k": 4, "aux_k": 8, "dead_after_tokens": 2000}
    facts = {
        "store": store,
        "dictionaries": [{"name": "sae", "sources": [HOOKS[0]], "num_latents": 64, "activation": activation}],
        "batch_rows": 48,
        "order": {"window_chunks": 8, "mode": "sequential"},
        "trackers": [],
        "output": str(output),
    }
    return TrainSpec.model_validate(facts | fields)


def test_a_store_that_another_run_collects(model: Path, corpus: Path, tmp_path: Path) -> None:
    spec = small_spec(model, corpus, tmp_path / "store")
    one = prepare(spec, built_table(spec))[0].of
    collector = UnitCollector.open(one)

    def collect() -> None:
        with held(Objects(spec.output), "collect"):
            for unit in range(one.num_units):
                time.sleep(0.02)
                collector.collect(unit)
        collector.writer.finish()

    source = FeedSource.of_store(spec.output)
    assert source.num_rows == one.num_rows
    thread = threading.Thread(target=collect)
    thread.start()
    follow = train_spec(spec.output, tmp_path / "follow", feed="follow")
    summary = engine.train(follow, SingleWorld(), store=source.open(follow, [HOOKS[0]], READER))
    thread.join()
    assert summary["tokens"] > 1000
    # All rows are fewer than statistics are taken of, so a stored feed in the same order is the same training.
    stored = train_spec(spec.output, tmp_path / "stored")
    engine.train(stored, SingleWorld(), store=Store.open(spec.output))
    weights = Path("sae", "dictionary.safetensors")
    assert (tmp_path / "follow" / weights).read_bytes() == (tmp_path / "stored" / weights).read_bytes()


def test_what_cannot_be_followed(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no activation store"):
        FeedSource.of_store(str(tmp_path / "nothing"))
    for feed in ("live", "tee"):
        with pytest.raises(SpecError, match="put both into one pipeline"):
            run_train(train_spec(str(tmp_path), tmp_path / "out", feed=feed), progress=Progress())
