"""Training a model: what is learnt, what is kept, and that an interrupted run is the uninterrupted one."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_model import model_spec
from transformers import AutoModelForCausalLM

from pipeline.grammar.bigram import MarkovSource
from pipeline.networks import build_network
from pipeline.pretraining.contexts import Contexts, read_contexts
from pipeline.pretraining.engine import pretrain
from pipeline.pretraining.prepare import open_table, prepare
from pipeline.pretraining.schedule import learning_rate_factor
from pipeline.pretraining.trainer import ModelTrainer
from pipeline.tokens.tokenizer import load_tokenizer
from pipeline.training.world import SingleWorld
from schemas.errors import DivergenceError, MismatchError, SpecError
from schemas.train_model import LogSpaced, ModelSchedule, TrainModelSpec


def run(spec: TrainModelSpec, **options: Any) -> dict[str, Any]:
    return pretrain(spec, prepare(spec), SingleWorld(), **options)


def digests(spec: TrainModelSpec) -> dict[str, str]:
    """Of all files of the results but the times."""
    folder = Path(spec.output)
    files = [*folder.glob("snapshots/**/*"), *folder.glob("model/*"), *folder.glob("checkpoints/**/*.safetensors")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.is_file()}


def logged(spec: TrainModelSpec) -> list[dict[str, Any]]:
    lines = Path(spec.output, "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "tokens_per_s"} for line in lines]


class StoppedError(Exception):
    pass


@pytest.mark.slow
def test_a_model_learns_its_source_and_is_kept_along_the_way(tmp_path: Path) -> None:
    spec = model_spec(str(tmp_path / "out"), steps=120, snapshots=[0, 3, 120])
    summary = run(spec)
    source = MarkovSource(spec.tokens.corpus.grammar, 0)  # type: ignore[union-attr]
    found, log = source.entropies(), logged(spec)
    # Before the first step it knows nothing: 15 tokens, twelve words and three special ones.
    assert log[0]["held_out_loss"] == pytest.approx(math.log(15), abs=0.05)
    assert summary["held_out_loss"] < found.unigram - 0.05
    assert summary["held_out_loss"] > found.source
    assert summary["tokens"] == 120 * 256
    assert sorted(p.name for p in Path(spec.output, "snapshots").iterdir()) == ["step0", "step120", "step3"]
    # A folder loads like any model, and the last snapshot is the model, whose loss is the one that is stated.
    table = open_table(prepare(spec))
    held_out = read_contexts(table, 15).held_out.first(200)
    losses = {}
    for name in ("snapshots/step0", "snapshots/step120", "model"):
        network = AutoModelForCausalLM.from_pretrained(Path(spec.output, name))
        ids = torch.from_numpy(held_out.take(np.arange(len(held_out)), 16)[0])
        with torch.no_grad():
            logits = network(input_ids=ids).logits[:, :-1]
        losses[name] = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
        assert load_tokenizer(str(Path(spec.output, name))).digest == table.identity["tokenizer"]["sha256"]
    assert losses["snapshots/step0"] == pytest.approx(log[0]["held_out_loss"], abs=1e-5)
    assert losses["model"] == losses["snapshots/step120"] == pytest.approx(summary["held_out_loss"], abs=1e-5)


@pytest.mark.parametrize(
    "sparsity",
    [
        pytest.param(None, id="dense"),
        pytest.param({"fraction": 0.25, "survivors": 1}, id="sparse", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_is_the_uninterrupted_one(tmp_path: Path, sparsity: dict[str, Any] | None) -> None:
    calm, hit = (model_spec(str(tmp_path / name), sparsity=sparsity) for name in ("calm", "hit"))
    run(calm)

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 19:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(hit, report=stop)
    assert not Path(hit.output, "model").exists()
    (Path(hit.output) / "snapshots" / ".writing-step9-x").mkdir()
    steps: list[int] = []
    again = run(hit, report=lambda record: steps.append(record["step"]))
    assert steps == list(range(15, 31))  # from the checkpoint of step 14
    assert not list(Path(hit.output, "snapshots").glob(".*"))
    assert digests(hit) == digests(calm)
    assert logged(hit) == logged(calm)
    assert [line["step"] for line in logged(calm)] == list(range(31))
    if sparsity:
        assert again["nonzero_share"] == pytest.approx(0.25, abs=0.02)
        assert logged(calm)[1]["nonzero_share"] > 0.8


def test_a_finished_run_is_reused_and_another_is_refused(tmp_path: Path) -> None:
    spec = model_spec(str(tmp_path / "out"), steps=4, snapshots=[])
    first = run(spec)
    assert not first["reused"]
    before = digests(spec)
    assert run(spec.model_copy(update={"log_every_steps": 3})) == {**first, "reused": True}
    assert digests(spec) == before
    for changes, field in (
        ({"seed": 1}, "seed"),
        ({"snapshots": [2]}, "snapshots"),
        ({"optimiser": {"learning_rate": 0.02}}, r"optimiser\.learning_rate"),
        ({"tokenizer": {"kind": "byte_pairs", "alphabet": "seen"}}, r"tokenizer\.kind"),
        ({"network": {**spec.network.model_dump(), "layers": 2}}, r"network\.layers"),
    ):
        with pytest.raises(MismatchError, match=field):
            run(model_spec(spec.output, **({"steps": 4, "snapshots": []} | changes)))


@pytest.mark.slow
def test_several_forwards_are_one_but_for_rounding(tmp_path: Path) -> None:
    whole, parts = (model_spec(str(tmp_path / name)) for name in ("whole", "parts"))
    parts = parts.model_copy(update={"forward_tokens": 48})
    run(whole)
    run(parts)
    for one, other in zip(logged(whole), logged(parts), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_padding_changes_nothing() -> None:
    """A context's loss is the same beside longer ones."""
    spec = model_spec("out")
    contexts = Contexts(np.array([0, 3, 4, 5, 6, 7, 8]), np.array([0, 7]))
    losses = []
    for width in (7, 16):
        trainer = ModelTrainer(build_network(spec.network, 15, 0), spec, torch.device("cpu"), width)
        losses.append(trainer.step(contexts, np.array([0]), SingleWorld(), 0, 0.01).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_given_tokenizer_goes_with_the_model(tmp_path: Path) -> None:
    first = model_spec(str(tmp_path / "first"), steps=2, snapshots=[])
    run(first)
    given = str(tmp_path / "first" / "tokenizer")
    second = model_spec(
        str(tmp_path / "second"), steps=2, snapshots=[1], tokens=first.tokens.model_dump() | {"tokenizer": given}
    )
    run(second)
    wanted = load_tokenizer(given)
    for name in ("tokenizer", "model", "snapshots/step1"):
        assert load_tokenizer(str(tmp_path / "second" / name)).digest == wanted.digest


def test_divergence_is_an_error_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    spec = model_spec(
        str(tmp_path / "out"), optimiser={"learning_rate": 1e30, "max_gradient_norm": 0}, snapshots=[], steps=30
    )
    with pytest.raises(DivergenceError, match=r"lower optimiser\.learning_rate"):
        run(spec)
    assert not Path(spec.output, "model").exists()


def test_a_corpus_without_held_out_documents_is_refused(tmp_path: Path) -> None:
    spec = model_spec(str(tmp_path / "out"), snapshots=[], steps=2)
    spec = spec.model_copy(update={"tokens": spec.tokens.model_copy(update={"held_out_fraction": 1e-9})})
    with pytest.raises(SpecError, match="of the 300 contexts of this corpus none are"):
        run(spec)


def test_the_output_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no folder of a disk"):
        prepare(model_spec("memory://there"))
    (tmp_path / "file").write_text("here")
    for output in ("file", "file/below"):
        with pytest.raises(SpecError, match="file is a file"):
            prepare(model_spec(str(tmp_path / output)))


def test_the_rate_rises_and_falls() -> None:
    linear = ModelSchedule(warmup_fraction=0.1, decay="linear", final_share=0.1)
    rates = [learning_rate_factor(linear, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert learning_rate_factor(linear, 100, 100) == pytest.approx(0.1)
    cosine = ModelSchedule(warmup_fraction=0, decay="cosine")
    assert [learning_rate_factor(cosine, step, 4) for step in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    flat = ModelSchedule(warmup_fraction=0.5, decay="none")
    assert [learning_rate_factor(flat, step, 4) for step in range(4)] == [0.5, 1, 1, 1]


def test_snapshots_are_spaced_by_ratio() -> None:
    spec = model_spec("out", steps=1500, snapshots=LogSpaced(count=12).model_dump())
    assert spec.snapshot_steps == [0, 1, 2, 4, 7, 14, 28, 54, 105, 204, 397, 772, 1500]
    few = model_spec("out", steps=3, snapshots={"count": 8})
    assert few.snapshot_steps == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"snapshots": [0, 31]}, "snapshots has step 31"),
        ({"snapshots": [3, 3]}, "one step twice"),
        ({"batch_tokens": 250}, "not a multiple"),
        ({"forward_tokens": 20}, "not a multiple"),
        ({"workers": {"num_workers": 17}}, "more than the contexts of a batch"),
        ({"network": {"layers": 1, "d_model": 16, "heads": 2, "context_length": 8}}, "raise the other"),
        ({"tokens": {"corpus": {"format": "text", "urls": ["a"]}, "held_out_fraction": 0,
                     "packing": {"context_length": 16}}}, "held_out: null"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model_spec("out", **changes)
