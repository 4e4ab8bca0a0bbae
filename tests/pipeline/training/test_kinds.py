"""What holds for every kind of dictionary: it learns, several ranks are one, a killed run goes on bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stepping import KINDS, build, on_ranks, shares

from pipeline.dictionaries.folder import load_dictionary
from pipeline.store.reader import Store
from pipeline.training import engine
from pipeline.training.kernels import TorchKernels
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import SingleWorld, World
from schemas.train import TrainSpec

MakeSpec = Callable[..., TrainSpec]
B, NUM_STEPS = 60, 12

TOPOLOGIES: dict[str, dict[str, Any]] = {
    "tied": {"sources": ["resid"], "tied": True, "activation": KINDS["topk"]},
    "crosscoder": {"sources": ["resid", "mlp_in"], "activation": KINDS["batch_topk"]},
    "skip_transcoder": {"sources": ["mlp_in"], "targets": ["mlp_out"], "skip": True, "activation": KINDS["jumprelu"]},
    "cross_layer": {
        "sources": ["resid", "mlp_in"], "targets": ["resid", "mlp_out"], "groups": "cross_layer",
        "activation": KINDS["batch_topk"],
    },
    "cross_layer_tanh": {
        "sources": ["resid", "mlp_in"], "targets": ["resid", "mlp_out"], "groups": "cross_layer",
        "activation": {"kind": "jumprelu", "penalty": {"kind": "tanh", "coefficient": 0.5,
                                                       "decoder_norms": "concatenated"}},
    },
}  # fmt: skip
WANTED = {name: {"sources": ["resid"], "activation": activation} for name, activation in KINDS.items()} | TOPOLOGIES


def spec_of(make_spec: MakeSpec, output: str, **fields: Any) -> TrainSpec:
    """Every kind and topology in one job."""
    dictionaries = [{"name": name, "num_latents": 48, "learning_rate": 5e-3, **one} for name, one in WANTED.items()]
    return make_spec(output, dictionaries=dictionaries, **fields)


def train_steps(kind: str, world: World) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Twelve steps on this rank's shares, in float64, where the order of additions hardly shows."""
    activation = dict(KINDS[kind])
    if "dead_after_tokens" in activation:
        activation["dead_after_tokens"] = 2 * B
    dictionary = build(activation)
    with torch.no_grad():
        # Dead from the start: AuxK and resampling have something to do.
        dictionary.b_enc[:6] = -20
    trainer = DictionaryTrainer(dictionary, TorchKernels(), max_gradient_norm=1.0)
    metrics = []
    for step in range(NUM_STEPS):
        x = torch.randn(B, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        mine = shares(B, world.size)[world.rank]
        metrics.append(
            trainer.step(
                {"a": x[mine]}, num_rows=B, factor=1.0, progress=step / NUM_STEPS, world=world,
                row_ids=torch.arange(step * B, (step + 1) * B).numpy()[mine],
            )
        )  # fmt: skip
    return metrics, {name: tensor.clone() for name, tensor in trainer.state().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_two_and_four_ranks_are_one(kind: str) -> None:
    expected_metrics, expected = train_steps(kind, SingleWorld())
    assert (expected_metrics[4]["dead_share"] >= 6 / 40) == ("dead_after_tokens" in KINDS[kind])
    if kind == "relu_l1_unit_norm":
        assert expected["objective.num_resamplings"] == 2
        assert (expected["weights.b_enc"][:6] > -1).all()
    for size in (2, 4):
        for metrics, state in on_ranks(size, lambda world: train_steps(kind, world)):
            for one, other in zip(metrics, expected_metrics, strict=True):
                assert one == pytest.approx(other, rel=1e-8, abs=1e-10)
            for name, tensor in expected.items():
                torch.testing.assert_close(state[name], tensor, rtol=1e-7, atol=1e-9, msg=name)


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.slow
def test_every_kind_learns_and_goes_on_bit_by_bit(make_spec: MakeSpec) -> None:
    whole = spec_of(make_spec, "whole", num_epochs=2)
    engine.train(whole, SingleWorld())
    lines = [
        json.loads(line)["dictionaries"] for line in (Path(whole.output) / "metrics.jsonl").read_text().splitlines()
    ]
    for name in WANTED:
        first, last = lines[0][name], lines[-1][name]
        assert last["fvu"] < 0.85 * first["fvu"], (name, first, last)
        assert last["l0"] > 0.5, name

    killed = spec_of(make_spec, "killed", num_epochs=2)

    def kill(record: dict[str, Any]) -> None:
        # After the second resampling of one kind and a change of p of another.
        if record["step"] >= 30:
            raise Killed

    with pytest.raises(Killed):
        engine.train(killed, SingleWorld(), report=kill)
    engine.train(killed, SingleWorld())
    for name in WANTED:
        weights = Path(name, "dictionary.safetensors")
        assert Path(killed.output, weights).read_bytes() == Path(whole.output, weights).read_bytes(), name
    require_thresholds(whole)


def require_thresholds(spec: TrainSpec) -> None:
    """The threshold in the artefact keeps about k latents a row, on rows of any number."""
    assert isinstance(spec.store, str)
    store = Store.open(spec.store)
    acts = {"resid": torch.from_numpy(store.gather_values("resid", torch.arange(1, 2400, 2).numpy()))}
    for name in ("batch_topk", "matryoshka"):
        dictionary = load_dictionary(f"{spec.output}/{name}")
        threshold = float(dictionary.activation.threshold)  # type: ignore[arg-type]
        assert threshold > 0
        codes = dictionary.codes_dense(dictionary.join_sources(acts))
        assert float(codes[codes > 0].min()) > threshold
        assert 2 < float((codes > 0).sum(1).double().mean()) < 4.5
        alone = dictionary.codes_dense(dictionary.join_sources({"resid": acts["resid"][:1]}))
        torch.testing.assert_close(alone, codes[:1])
