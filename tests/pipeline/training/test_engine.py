"""The engine on a real store: it learns, resumes bit by bit, reuses, refuses, and says what it did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.dictionaries.folder import load_dictionary
from pipeline.store.reader import Store
from pipeline.store.words import to_float32
from pipeline.training import engine, memory
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.world import SingleWorld
from schemas.errors import HookPointError, MismatchError, ResourceError
from schemas.train import TrainSpec

MakeSpec = Callable[..., TrainSpec]
# 2400 rows; 1/20 held out, the first of each context of 12 left out: 2090 rows, 21 batches of 100 an epoch.
ROWS_PER_EPOCH = 2090
NAMES = ("sae", "skip", "l1")


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is written after it."""


def kill_at(step: int) -> Callable[[dict[str, Any]], None]:
    def report(record: dict[str, Any]) -> None:
        if record["step"] >= step:
            raise Killed

    return report


def weights(spec: TrainSpec) -> dict[str, bytes]:
    return {name: (Path(spec.output) / name / "dictionary.safetensors").read_bytes() for name in NAMES}


def test_learns_and_reports(make_spec: MakeSpec) -> None:
    spec = make_spec(num_epochs=8, trackers=["tensorboard"])
    records: list[dict[str, Any]] = []
    summary = engine.train(spec, SingleWorld(), report=records.append)

    assert summary["steps"] == 8 * 21
    assert summary["tokens"] == 8 * ROWS_PER_EPOCH
    assert not summary["reused"]
    lines = [json.loads(line) for line in (Path(spec.output) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(5, 168, 5), 168]
    assert [record["step"] for record in records] == [line["step"] for line in lines]
    assert records[-1]["num_steps"] == 168
    assert all(0 <= line["same_context_rate"] < 0.1 and 0 < line["same_context_rate_ideal"] < 0.1 for line in lines)
    keys = {"loss", "fvu", "l0", "dead_share", "grad_norm", "aux_loss"}
    assert all(set(line["dictionaries"][name]) == keys for line in lines for name in NAMES)
    for name in NAMES:
        assert lines[-1]["dictionaries"][name]["fvu"] < 0.6 * lines[0]["dictionaries"][name]["fvu"], name
    assert summary["dictionaries"]["sae"]["fvu"] < 0.35
    assert summary["dictionaries"]["sae"]["l0"] <= 3
    assert list((Path(spec.output) / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.parametrize(("dtype", "layout"), [("bfloat16", "arrow"), ("int8", "zarr"), ("float8_e4m3", "arrow")])
def test_learns_as_well_from_other_stores_of_the_same_rows(
    make_spec: MakeSpec, make_store: Callable[..., str], dtype: str, layout: str
) -> None:
    expected = engine.train(make_spec(num_epochs=4), SingleWorld())
    spec = make_spec("other", num_epochs=4, store=make_store(dtype=dtype, layout=layout))
    summary = engine.train(spec, SingleWorld())
    assert summary["tokens"] == expected["tokens"]
    # Other bytes are another store, so another order of rows: near, not equal.
    for name in NAMES:
        assert summary["dictionaries"][name]["fvu"] == pytest.approx(expected["dictionaries"][name]["fvu"], abs=0.06)


def test_result_carries_its_provenance(make_spec: MakeSpec, store_url: str) -> None:
    spec = make_spec()
    summary = engine.train(spec, SingleWorld())
    store = Store.open(store_url)
    dictionary = load_dictionary(f"{spec.output}/skip")
    record = dictionary.record
    assert record is not None
    assert (record.store_fingerprint, record.table_fingerprint) == (store.fingerprint, store.table_fingerprint)
    assert record.train_spec == spec.model_dump(mode="json")
    assert record.metrics == summary["dictionaries"]["skip"]
    assert record.model == {"path": "planted"}
    assert record.versions["torch"] == torch.__version__
    # The scale makes the mean norm sqrt(d_model): the statistics of the store, not of a batch.
    words = store.read_rows("mlp_in", 0, store.num_rows)
    norms = np.linalg.norm(to_float32(words, store.dtype), axis=1)
    assert record.scales["mlp_in"] == pytest.approx(4 / norms.mean(), rel=1e-4)


@pytest.mark.parametrize("step", [1, 10, 30, 41])
def test_killed_and_resumed_is_uninterrupted_bit_by_bit(make_spec: MakeSpec, step: int) -> None:
    whole = make_spec("whole", log_every_steps=1)
    engine.train(whole, SingleWorld())
    killed = make_spec("killed", log_every_steps=1)
    with pytest.raises(Killed):
        engine.train(killed, SingleWorld(), report=kill_at(step))
    assert not (Path(killed.output) / engine.COMPLETE).exists()
    engine.train(killed, SingleWorld())
    assert weights(killed) == weights(whole)
    logged = [json.loads(line) for line in (Path(killed.output) / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (Path(whole.output) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == list(range(1, 43))
    assert [line["dictionaries"] for line in logged] == [line["dictionaries"] for line in expected]


def test_finished_output_is_reused(make_spec: MakeSpec) -> None:
    spec = make_spec()
    first = engine.train(spec, SingleWorld())
    before = weights(spec)
    again = engine.train(spec, SingleWorld(), report=kill_at(0))
    assert again == {**first, "reused": True}
    assert weights(spec) == before


def test_resources_and_logging_are_not_identity(make_spec: MakeSpec) -> None:
    engine.train(make_spec(), SingleWorld())
    other = make_spec(name="other", log_every_steps=1, checkpoint_every_steps=0, workers={"num_workers": 7})
    assert engine.train(other, SingleWorld())["reused"]


def test_output_of_another_job_is_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(Killed):
        engine.train(make_spec(), SingleWorld(), report=kill_at(10))
    with pytest.raises(MismatchError, match="batch_rows: this job has 50"):
        engine.train(make_spec(batch_rows=50), SingleWorld())
    engine.train(make_spec(), SingleWorld())
    with pytest.raises(MismatchError, match=r"schedule\.decay_fraction"):
        engine.train(make_spec(schedule={"decay_fraction": 0.5}), SingleWorld())


def test_at_most_two_checkpoints_are_kept(make_spec: MakeSpec) -> None:
    spec = make_spec()
    engine.train(spec, SingleWorld())
    assert Checkpoints(spec.output).steps() == [35, 42]
    folders = sorted(path.name for path in (Path(spec.output) / "checkpoints").iterdir() if any(path.iterdir()))
    assert folders == ["000000035", "000000042"]


def test_unknown_hook_point_and_too_little_memory(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = [{"name": "d", "sources": ["residd"], "num_latents": 48}]
    with pytest.raises(HookPointError, match="'resid'"):
        engine.train(make_spec(dictionaries=unknown), SingleWorld())
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    spec = make_spec()
    with pytest.raises(ResourceError, match="sae: 48 latents"):
        engine.train(spec, SingleWorld())
    assert not Path(spec.output).exists()


def test_output_in_an_object_store(make_spec: MakeSpec) -> None:
    url = "memory://training/out"
    spec = make_spec().model_copy(update={"output": url})
    with pytest.raises(Killed):
        engine.train(spec, SingleWorld(), report=kill_at(20))
    engine.train(spec, SingleWorld())
    local = make_spec("local")
    engine.train(local, SingleWorld())
    ours, theirs = load_dictionary(f"{url}/sae"), load_dictionary(f"{local.output}/sae")
    assert torch.equal(ours.encoder, theirs.encoder)
