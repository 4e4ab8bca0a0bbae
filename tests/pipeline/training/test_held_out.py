"""Figures on held-out rows: those of a hand-made evaluation, for any number of ranks, and of no effect on training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stepping
import torch

from pipeline.dictionaries.folder import load_dictionary
from pipeline.store.reader import Store
from pipeline.training import engine, held_out
from pipeline.training.batch import SharedRows
from pipeline.training.kernels import TorchKernels
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import SingleWorld, World
from schemas.errors import SpecError
from schemas.train import HeldOut, TrainSpec

MakeSpec = Callable[..., TrainSpec]
CPU = torch.device("cpu")
NUM_HELD_OUT = 110  # 10 of 200 contexts of 12 rows, the first row of each left out
FIGURES = {"held_out_loss", "held_out_fvu", "held_out_l0", "held_out_dead_share"}


def lines(spec: TrainSpec) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(spec.output) / "metrics.jsonl").read_text().splitlines()]


def test_figures_are_those_of_the_dictionary_on_the_held_out_rows(make_spec: MakeSpec, store_url: str) -> None:
    plain = make_spec("plain")
    engine.train(plain, SingleWorld())
    spec = make_spec("measured", held_out={"evaluate_every_steps": 8})
    summary = engine.train(spec, SingleWorld())

    for name in ("sae", "skip", "l1"):
        ours, theirs = (Path(one.output) / name / "dictionary.safetensors" for one in (spec, plain))
        assert ours.read_bytes() == theirs.read_bytes(), "measuring changed what was trained"
    measured = [line["step"] for line in lines(spec) if set(line["dictionaries"]["sae"]) >= FIGURES]
    assert measured == [8, 16, 24, 32, 40, 42]
    assert [line["step"] for line in lines(spec)] == sorted({*range(5, 43, 5), *measured})

    store = Store.open(store_url)
    tokens = store.tokens(0, store.num_rows)
    ids = np.flatnonzero(tokens.held_out & (tokens.position != 0))
    assert len(ids) == NUM_HELD_OUT
    for name in ("sae", "skip", "l1"):
        dictionary = load_dictionary(f"{spec.output}/{name}")
        assert dictionary.record is not None
        points = {**dictionary.d_source, **dictionary.d_target}
        acts = {p: torch.from_numpy(store.read_values(p, 0, store.num_rows)[ids]) for p in points}
        x, y = dictionary.join_sources(acts), dictionary.join_targets(acts)
        with torch.no_grad():
            codes, error = dictionary.codes_dense(x), float((dictionary(x) - y).square().sum())
        figures = summary["dictionaries"][name]
        assert dictionary.record.metrics == figures
        assert figures["held_out_fvu"] == pytest.approx(error / float((y - y.mean(0)).square().sum()), rel=1e-4)
        assert figures["held_out_l0"] == pytest.approx(float((codes > 0).sum(1).double().mean()), rel=1e-6)
        assert figures["held_out_dead_share"] == pytest.approx(float(((codes > 0).sum(0) == 0).double().mean()))
        if name != "l1":
            assert figures["held_out_loss"] == pytest.approx(figures["held_out_fvu"], rel=1e-6)


def test_rows_are_chosen_by_the_seed_and_never_trained_on(make_spec: MakeSpec, store_url: str) -> None:
    store, spec = Store.open(store_url), make_spec()
    tokens = store.tokens(0, store.num_rows)

    def chosen(**fields: int) -> list[int]:
        return held_out.choose(store, spec, HeldOut(**fields)).tolist()

    whole = chosen()
    assert len(set(whole)) == NUM_HELD_OUT
    assert tokens.held_out[whole].all()
    part = chosen(num_rows=30)
    assert len(part) == 30
    assert set(part) < set(whole)
    assert part == chosen(num_rows=30)
    assert len({tuple(chosen(num_rows=30, seed=seed)) for seed in range(5)}) == 5
    unfiltered = spec.model_copy(update={"rows": spec.rows.model_copy(update={"exclude_positions": [3],
                                                                              "exclude_specials": False})})  # fmt: skip
    assert set(tokens.position[held_out.choose(store, unfiltered, HeldOut())]) == {*range(12)} - {3}


@pytest.mark.parametrize("kind", stepping.KINDS)
def test_ranks_measure_what_one_does(make_spec: MakeSpec, store_url: str, kind: str) -> None:
    one = {"name": "d", "sources": ["resid"], "num_latents": 40, "activation": stepping.KINDS[kind]}
    spec = make_spec(dictionaries=[one], held_out={"num_rows": 100}, batch_rows=33)

    def measure(world: World) -> tuple[int, dict[str, float]]:
        store = Store.open(store_url)
        batches = held_out.read(spec, store, ["resid"], world.rows, CPU)
        dictionary = stepping.build(stepping.KINDS[kind])
        trainer = DictionaryTrainer(dictionary, TorchKernels(), max_gradient_norm=1.0)
        shared = [(SharedRows({"a": batch.acts["resid"][:, :6]}), batch.num_rows) for batch in batches]
        mine = sum(len(batch.acts["resid"]) for batch in batches)
        return mine, trainer.evaluate(shared, progress=0.5, world=world)

    num_rows, alone = measure(SingleWorld())
    assert num_rows == 100
    for size in (2, 4):
        ranks = stepping.on_ranks(size, measure)
        assert sum(mine for mine, _ in ranks) == 100
        for _, figures in ranks:
            assert figures == pytest.approx(alone, rel=1e-9)


def test_rows_too_large_are_left_out_as_in_training(make_spec: MakeSpec, store_url: str) -> None:
    store = Store.open(store_url)
    spec = make_spec(rows={"max_norm_multiple": 1.1}, held_out={})
    batches = held_out.read(spec, store, ["resid"], SingleWorld(), CPU)
    kept = torch.cat([batch.acts["resid"] for batch in batches])
    assert 0 < len(kept) < NUM_HELD_OUT
    assert sum(batch.num_rows for batch in batches) == len(kept)


def test_resumed_lines_are_those_of_the_uninterrupted_run(make_spec: MakeSpec) -> None:
    class Killed(BaseException):
        pass

    def report(record: dict[str, Any]) -> None:
        if record["step"] >= 24:
            raise Killed

    whole, killed = (make_spec(name, held_out={"evaluate_every_steps": 4}) for name in ("whole", "killed"))
    engine.train(whole, SingleWorld())
    with pytest.raises(Killed):
        engine.train(killed, SingleWorld(), report=report)
    engine.train(killed, SingleWorld())
    assert [line["dictionaries"] for line in lines(killed)] == [line["dictionaries"] for line in lines(whole)]


def test_a_store_that_held_nothing_out_is_refused(make_spec: MakeSpec, make_store: Callable[..., str]) -> None:
    spec = make_spec(held_out={}, store=make_store(held_out_every=10**6))
    with pytest.raises(SpecError, match=r"it holds none: collect with tokens\.held_out_fraction"):
        engine.train(spec, SingleWorld())


@pytest.mark.parametrize("kind", stepping.KINDS)
def test_dictionaries_that_share_rows_take_the_steps_of_separate_ones(kind: str) -> None:
    def trained(seed: int, batches: list[Any]) -> dict[str, torch.Tensor]:
        dictionary = stepping.build(stepping.KINDS[kind], seed=seed, dtype=torch.float32)
        trainer = DictionaryTrainer(dictionary, TorchKernels(), max_gradient_norm=1.0)
        for step, batch in enumerate(batches):
            trainer.step(batch, num_rows=64, factor=1.0, progress=step / 4, world=SingleWorld(),
                         row_ids=np.arange(64))  # fmt: skip
        return trainer.state()

    rows = [torch.randn(64, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    shared = [SharedRows({"a": x.clone()}) for x in rows]
    for seed in (3, 4, 5):
        ours, theirs = trained(seed, shared), trained(seed, [{"a": x.clone()} for x in rows])
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
