"""Plans of trainings that run while their store is collected, or without one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "collection"))

from small_job import HOOKS, WIDTH, save_corpus, save_model, small_spec

from pipeline.planning.jobs import plan
from schemas.errors import SpecError
from schemas.pipeline import JOB_ADAPTER
from schemas.plan import Plan, PlanAssumptions


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return save_model(folder / "model"), save_corpus(folder / "corpus")


def planned(parts: tuple[Path, Path], folder: Path, feed: str, **fields: Any) -> Plan:
    collect = small_spec(*parts, folder / "store").model_dump(mode="json")
    dictionary = {"name": "a", "sources": [HOOKS[0]], "num_latents": 64, "activation": {"kind": "topk", "k": 4}}
    train = {
        "kind": "train", "store": "${collect}", "feed": feed, "output": str(folder / "out"), "batch_rows": 32,
        "order": {"window_chunks": 8}, "dictionaries": [dictionary],
    }  # fmt: skip
    facts = {"kind": "pipeline", "jobs": [collect, train | fields], "output": str(folder)}
    prices = {
        "prices": {"device_hour": 3.0, "put_thousand": 1.0, "storage_gb_month": 1.0},
        "rates": {"tokens_per_s": 10},
    }
    return plan(JOB_ADAPTER.validate_python(facts), PlanAssumptions.model_validate(prices))


def test_a_live_feed_writes_and_reads_nothing_but_computes(parts: tuple[Path, Path], tmp_path: Path) -> None:
    stored, live = (planned(parts, tmp_path, feed) for feed in ("stored", "live"))
    assert stored.size_bytes > 0
    assert (live.size_bytes, live.objects) == (0, 0)
    assert live.hours == stored.hours
    assert live.money is not None
    assert stored.money is not None
    assert live.hours is not None
    assert live.money == pytest.approx(3.0 * live.hours)
    assert live.money < stored.money
    collect, train = live.jobs
    assert "no store is written: its rows are handed to train" in collect.notes
    assert collect.store is not None
    assert collect.store.missing_rows == stored.jobs[0].store.missing_rows  # type: ignore[union-attr]
    assert train.train is not None
    assert train.train.read_bytes == 0
    # A window of 8 chunks of 16 rows is two units of 64, and one for the forward process, of two hook points in bf16.
    assert train.train.block_bytes == 3 * 64 * 2 * WIDTH * 2
    assert train.train.steps == stored.jobs[1].train.steps  # type: ignore[union-attr]


def test_a_tee_writes_as_much(parts: tuple[Path, Path], tmp_path: Path) -> None:
    stored, tee = (planned(parts, tmp_path, feed) for feed in ("stored", "tee"))
    assert tee.size_bytes == stored.size_bytes
    assert tee.jobs[1].train is not None
    assert tee.jobs[1].train.block_bytes > 0


def test_a_plan_refuses_what_a_run_does(parts: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="needs one in the same"):
        planned(parts, tmp_path, "live", store=str(tmp_path / "elsewhere"))
