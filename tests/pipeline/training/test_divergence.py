"""A dictionary that diverges is stopped and kept at its last good checkpoint; the others of its job never notice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import stepping
import torch

from pipeline.dictionaries.folder import load_dictionary
from pipeline.training import engine
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.divergence import DivergenceWatch
from pipeline.training.kernels import TorchKernels
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import SingleWorld, World
from schemas.errors import DivergenceError
from schemas.train import DivergenceCheck, TrainSpec

MakeSpec = Callable[..., TrainSpec]
TOPK = {"kind": "topk", "k": 3, "aux_k": 8, "dead_after_tokens": 300}
GOOD = {"name": "good", "sources": ["resid"], "num_latents": 48, "activation": TOPK, "learning_rate": 5e-3}
# Without unit norms a high rate makes weights, and so losses, explode; Adam's steps do not overflow before that.
WILD = {**GOOD, "name": "wild", "activation": {"kind": "relu_l1", "l1_coefficient": 0.01}, "learning_rate": 50.0}
NAN = {**WILD, "name": "nan", "learning_rate": 1e20}


def watched(fvus: Iterable[float], **fields: Any) -> DivergenceWatch:
    watch = DivergenceWatch(DivergenceCheck(**{"window_steps": 5, **fields}), torch.device("cpu"))
    for step, fvu in enumerate(fvus):
        watch.observe(fvu, step)
        if watch.verdict:
            break
    return watch


def test_an_explosion_is_found_once_half_a_window_has_seen_it() -> None:
    watch = watched([3, 2, 1, 0.9, 0.8, 0.7, 50, 60, 70, 80])
    assert watch.verdict is not None
    # Five figures, three of them high: the ninth step. The reference is what predicting the mean gives.
    assert (watch.verdict.step, watch.verdict.figure, watch.verdict.reference) == (9, 50, 1)
    assert watched([30, 20, 10, 9, 8, 7, 50, 60, 70, 69]).verdict is None
    assert watched([3, 2, 1, 0.9, 0.8, 0.7, 50, 60, 70, 80], fvu_multiple=0).verdict is None


def test_what_healthy_runs_do_is_no_divergence() -> None:
    assert watched([100, 0.5, 0.4, 99, 0.4, 0.4, 99, 0.4, 0.3, 0.3, 99, 99, 0.3]).verdict is None
    assert watched([0.001 * step for step in range(1000)]).verdict is None
    assert watched([40 / (step + 1) for step in range(100)]).verdict is None


def test_suspicion_begins_with_the_first_high_error_and_ends_with_it() -> None:
    watch = watched([1, 1, 1, 1, 1, 1, 99])
    assert watch.is_suspect
    assert watch.verdict is None
    watch.observe(1, 7)
    assert not watch.is_suspect


@pytest.mark.parametrize("kind", [*stepping.KINDS])
def test_no_kind_looks_diverged_while_it_learns(kind: str) -> None:
    dictionary = stepping.build(stepping.KINDS[kind], learning_rate=5e-3)
    check = DivergenceCheck(window_steps=4, fvu_multiple=2)
    trainer = DictionaryTrainer(dictionary, TorchKernels(), max_gradient_norm=1.0, divergence=check)
    x, _ = stepping.rows(dictionary)
    for step in range(40):
        trainer.step({"a": x}, num_rows=len(x), factor=1.0, progress=step / 40, world=SingleWorld(),
                     row_ids=torch.arange(len(x)).numpy())  # fmt: skip
    assert trainer.watch.verdict is None


def train(spec: TrainSpec) -> str:
    """The message of the failure."""
    with pytest.raises(DivergenceError) as failure:
        engine.train(spec, SingleWorld())
    return str(failure.value)


def test_siblings_go_on_and_the_job_fails_in_the_end(make_spec: MakeSpec) -> None:
    fields = {"divergence": {"window_steps": 6}, "max_gradient_norm": 0, "checkpoint_every_steps": 2}
    alone = make_spec("alone", dictionaries=[GOOD], **fields)
    engine.train(alone, SingleWorld())
    spec = make_spec(dictionaries=[WILD, GOOD, NAN], **fields)
    message = train(spec)
    assert "2 of 3 dictionaries diverged" in message
    assert "the other 1 are trained" in message
    assert "of dictionary 'wild': the median FVU" in message
    assert "of dictionary 'nan': loss" in message
    ours, theirs = (Path(one.output) / "good" / "dictionary.safetensors" for one in (spec, alone))
    assert ours.read_bytes() == theirs.read_bytes()

    record = json.loads((Path(spec.output) / engine.COMPLETE).read_text())
    stopped = record["summary"]["stopped"]
    assert set(stopped) == {"wild", "nan"}
    assert set(record["summary"]["dictionaries"]) == {"good"}
    for name, facts in stopped.items():
        assert facts["kept_step"] < facts["step"]
        if facts["kept_step"]:
            kept = load_dictionary(f"{spec.output}/{name}").record
            assert kept is not None
            assert kept.steps == facts["kept_step"]
            assert kept.tokens <= 100 * kept.steps
        else:
            assert not (Path(spec.output) / name).exists()
    logged = [json.loads(line) for line in (Path(spec.output) / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["step"] == 42
    assert set(logged[-1]["dictionaries"]) == {"good"}
    # Asked for again, the finished output fails again.
    assert train(spec) == message


def test_the_last_good_checkpoint_survives_until_the_verdict(make_spec: MakeSpec) -> None:
    """The error explodes at once, the verdict comes some twenty steps later: all checkpoints between are bad."""
    slow = {**WILD, "learning_rate": 2.0}
    fields = {"divergence": {"window_steps": 40}, "max_gradient_norm": 0, "checkpoint_every_steps": 1}
    schedule = {"warmup_fraction": 1.0, "decay_fraction": 0.0}
    spec = make_spec(dictionaries=[slow, GOOD], schedule=schedule, num_epochs=6, **fields)
    message = train(spec)
    stopped = json.loads((Path(spec.output) / engine.COMPLETE).read_text())["summary"]["stopped"]
    assert stopped["wild"]["step"] - stopped["wild"]["kept_step"] > 10, message
    assert stopped["wild"]["kept_step"] > 0
    assert load_dictionary(f"{spec.output}/wild").record is not None
    assert Checkpoints(spec.output).steps() == [125, 126]


def test_nothing_is_left_to_train_ends_the_run(make_spec: MakeSpec) -> None:
    spec = make_spec(dictionaries=[NAN], max_gradient_norm=0, checkpoint_every_steps=1, log_every_steps=1)
    message = train(spec)
    assert "1 of 1 dictionaries diverged and were stopped:" in message
    logged = (Path(spec.output) / "metrics.jsonl").read_text().splitlines()
    assert len(logged) < 10


def test_a_run_that_was_killed_stops_the_same_dictionaries_at_the_same_steps(make_spec: MakeSpec) -> None:
    class Killed(BaseException):
        pass

    def report(record: dict[str, Any]) -> None:
        if record["step"] >= 30:
            raise Killed

    fields = {"divergence": {"window_steps": 6}, "max_gradient_norm": 0, "checkpoint_every_steps": 4}
    whole = make_spec("whole", dictionaries=[WILD, GOOD], **fields)
    killed = make_spec("killed", dictionaries=[WILD, GOOD], **fields)
    expected = train(whole)
    with pytest.raises(Killed):
        engine.train(killed, SingleWorld(), report=report)
    assert train(killed) == expected.replace("whole", "killed")
    ours, theirs = (Path(spec.output) / "good" / "dictionary.safetensors" for spec in (killed, whole))
    assert ours.read_bytes() == theirs.read_bytes()


def test_ranks_come_to_the_same_verdict() -> None:
    def run(world: World) -> Any:
        dictionary = stepping.build(stepping.KINDS["relu_l1"], learning_rate=50.0)
        check = DivergenceCheck(window_steps=5)
        trainer = DictionaryTrainer(dictionary, TorchKernels(), max_gradient_norm=0.0, divergence=check)
        for step in range(30):
            x, _ = stepping.rows(dictionary, seed=step)
            part = stepping.shares(len(x), world.size)[world.rank]
            trainer.step({"a": x[part]}, num_rows=len(x), factor=1.0, progress=0.5, world=world)
            if trainer.watch.verdict:
                return trainer.watch.verdict.step
        return None

    alone = run(SingleWorld())
    assert alone is not None
    for size in (2, 4):
        assert stepping.on_ranks(size, run) == [alone] * size
