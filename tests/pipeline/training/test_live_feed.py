"""Training on a store while it is written: bit by bit the run on the finished store, through a kill, too."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.order.live import LedgerBlocks
from pipeline.store.arriving import ArrivingStore
from pipeline.store.reader import Store
from pipeline.store.writer import StoreWriter
from pipeline.training import engine
from pipeline.training.world import SingleWorld
from schemas.errors import MismatchError, SpecError
from schemas.train import TrainSpec

MakeSpec = Callable[..., TrainSpec]
NAMES = ("sae", "skip", "l1")
POINTS = ["resid", "mlp_in", "mlp_out"]


class Table:
    """The tokens of a store, as a token table has them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def rows(self, start: int, stop: int) -> Any:
        return self._store.tokens(start, stop)


def arriving(store_url: str, url: str) -> ArrivingStore:
    """The store at ``url``, which is to become a copy of the other."""
    done = Store.open(store_url)
    blocks = LedgerBlocks(url, POINTS, num_rows=done.num_rows, require_alive=lambda: None)
    return ArrivingStore(url, done.record, Table(done), blocks, POINTS, done.num_rows)


@pytest.fixture
def copying(store_url: str, tmp_path: Path) -> Callable[..., str]:
    """Begins to copy the store, its units from the last to the first; where to."""

    def copy(name: str, pause_s: float) -> str:
        url = str(tmp_path / name)

        def write() -> None:
            done = Store.open(store_url)
            passed = next(iter(done.passes.values()))
            writer = StoreWriter.open(url, done.record, passed, num_rows=done.num_rows)
            for unit in reversed(range(done.num_units)):
                time.sleep(pause_s)
                start, stop = writer.unit_rows(unit)
                words = {point: done.read_rows(point, start, stop) for point in POINTS}
                writer.write_unit(unit, words, done.tokens(start, stop), worker="test", attempt=0, seconds={})

        threading.Thread(target=write, daemon=True).start()
        return url

    return copy


def weights(spec: TrainSpec) -> dict[str, bytes]:
    return {name: (Path(spec.output) / name / "dictionary.safetensors").read_bytes() for name in NAMES}


def in_order(**fields: Any) -> dict[str, Any]:
    return {"order": {"window_chunks": 5, "mode": "sequential"}, "num_epochs": 2, "log_every_steps": 1,
            "held_out": {"evaluate_every_steps": 5}} | fields  # fmt: skip


def test_a_growing_store_trains_what_the_finished_one_does(
    make_spec: MakeSpec, store_url: str, copying: Callable[..., str]
) -> None:
    # Fewer rows than statistics are taken of, so here they are those of all rows.
    stored = make_spec("stored", **in_order())
    engine.train(stored, SingleWorld())
    follow = make_spec("follow", feed="follow", **in_order())
    url = copying("growing", pause_s=0.1)
    summary = engine.train(follow, SingleWorld(), store=arriving(store_url, url))
    assert weights(follow) == weights(stored)
    lines = [json.loads(line) for line in (Path(follow.output) / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["stalled_s"] for line in lines) == pytest.approx(summary["stalled_seconds"], abs=1e-3)


def test_killed_and_resumed_by_another_feed_is_uninterrupted(
    make_spec: MakeSpec, store_url: str, copying: Callable[..., str]
) -> None:
    whole = make_spec("whole", feed="follow", num_epochs=2)
    engine.train(whole, SingleWorld(), store=arriving(store_url, store_url))
    killed = make_spec("killed", feed="follow", num_epochs=2)

    class Killed(BaseException):
        pass

    def report(record: dict[str, Any]) -> None:
        if record["step"] >= 15:
            raise Killed

    with pytest.raises(Killed):
        engine.train(killed, SingleWorld(), store=arriving(store_url, copying("one", 0.02)), report=report)
    tee = make_spec("killed", feed="tee", num_epochs=2)
    engine.train(tee, SingleWorld(), store=arriving(store_url, copying("two", 0.02)))
    assert weights(tee) == weights(whole)
    # A stored feed has another order and other statistics: another run.
    with pytest.raises(MismatchError, match="arriving"):
        engine.train(make_spec("killed", num_epochs=2), SingleWorld())


def test_a_live_feed_has_one_epoch(make_spec: MakeSpec, store_url: str) -> None:
    spec = make_spec("live", feed="live", num_epochs=1, num_tokens=10_000)
    with pytest.raises(SpecError, match="one epoch of 2,090 rows"):
        engine.train(spec, SingleWorld(), store=arriving(store_url, store_url))
