"""Runs of ranks that hold dictionaries together: they give what one rank gives, and go on with any other grid."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from stepping import KINDS, on_ranks

from pipeline.dictionaries.folder import load_dictionary
from pipeline.training import checkpoint, engine
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.world import SingleWorld, World
from schemas.train import TrainSpec

MakeSpec = Callable[..., TrainSpec]
WANTED: dict[str, dict[str, Any]] = {
    name: {"sources": ["resid"], "activation": KINDS[name]} for name in ("topk", "matryoshka", "jumprelu", "gated")
} | {"skip": {"sources": ["mlp_in"], "targets": ["mlp_out"], "skip": True, "activation": KINDS["batch_topk"]}}


def spec_of(make_spec: MakeSpec, output: str, names: Iterable[str] = WANTED, **fields: Any) -> TrainSpec:
    # 47: slices of unequal size.
    dictionaries = [{"name": name, "num_latents": 47, "learning_rate": 1e-3, **WANTED[name]} for name in names]
    return make_spec(output, dictionaries=dictionaries, num_epochs=1, **fields)


def require_same(ours: TrainSpec, theirs: TrainSpec) -> None:
    """Final weights, the last checkpoint and logged figures agree up to the order of float additions."""
    logs = [(Path(spec.output) / "metrics.jsonl").read_text().splitlines() for spec in (ours, theirs)]
    for one, other in zip(*(map(json.loads, log) for log in logs), strict=True):
        for name in other["dictionaries"]:
            expected = pytest.approx(other["dictionaries"][name], rel=1e-3, abs=1e-5)
            assert one["dictionaries"][name] == expected, (one["step"], name)
    for name in (one.name for one in ours.dictionaries):
        mine, others = (load_dictionary(f"{spec.output}/{name}") for spec in (ours, theirs))
        for key, tensor in others.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[key], tensor, rtol=1e-2, atol=1e-3, msg=f"{name} {key}")
        states = [dict(Checkpoints(spec.output).read_state(Checkpoints(spec.output).steps()[-1], name))
                  for spec in (ours, theirs)]  # fmt: skip
        assert {key: value.shape for key, value in states[0].items()} == {
            key: value.shape for key, value in states[1].items()
        }


class Killed(BaseException):
    """Stands for SIGKILL."""


def kill_at(step: int) -> Callable[[dict[str, Any]], None]:
    def kill(record: dict[str, Any]) -> None:
        if record["step"] >= step:
            raise Killed

    return kill


def test_a_run_goes_on_with_other_shards(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several files for each dictionary.
    monkeypatch.setattr(checkpoint, "PART_BYTES", 2000)
    names = ("topk", "skip")
    alone = spec_of(make_spec, "alone", names)
    engine.train(alone, SingleWorld())

    def work(spec: TrainSpec, step: int) -> Callable[[World], Any]:
        return lambda world: engine.train(spec, world, report=kill_at(step) if step else None)

    moved = spec_of(make_spec, "moved", names)
    with pytest.raises(Killed):
        on_ranks(4, work(moved, 10), latent_shards=2)
    assert Checkpoints(moved.output).steps() == [7]
    with pytest.raises(Killed):
        on_ranks(3, work(moved, 15), latent_shards=3)
    assert Checkpoints(moved.output).steps() == [7, 14]
    summaries = on_ranks(2, work(moved, 0), latent_shards=2)
    assert [summary["steps"] for summary in summaries] == [summaries[0]["steps"]] * 2
    require_same(moved, alone)
    back = spec_of(make_spec, "back", names)
    with pytest.raises(Killed):
        on_ranks(2, work(back, 15), latent_shards=2)
    engine.train(back, SingleWorld())
    require_same(back, alone)


def test_the_same_grid_gives_the_same_bytes_after_a_kill(make_spec: MakeSpec) -> None:
    calm, hit = spec_of(make_spec, "calm"), spec_of(make_spec, "hit")
    on_ranks(2, lambda world: engine.train(calm, world), latent_shards=2)
    with pytest.raises(Killed):
        on_ranks(2, lambda world: engine.train(hit, world, report=kill_at(10)), latent_shards=2)
    on_ranks(2, lambda world: engine.train(hit, world), latent_shards=2)
    for name in WANTED:
        weights = Path(name, "dictionary.safetensors")
        assert Path(hit.output, weights).read_bytes() == Path(calm.output, weights).read_bytes(), name
        assert safetensors.torch.load_file(Path(hit.output, weights))["encoder"].shape[0] == 47


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workers": {"num_workers": 3, "latent_shards": 2}}, r"latent_shards \(2\) must divide num_workers \(3\)"),
        ({"feed": "live"}, "feed live hands every row to one rank"),
        ({"dictionaries": [{"optimiser": {"kind": "muon"}}]}, "'d' cannot lie on 2 ranks.*muon"),
        ({"dictionaries": [{"sources": ["resid", "mlp_in"], "groups": "per_layer"}]}, r"groups \(per_layer\)"),
        ({"dictionaries": [{"end_to_end": {}}]}, "'d' cannot lie on 2 ranks.*end_to_end"),
        ({"dictionaries": [{"num_latents": 1, "activation": {"kind": "relu_l1"}}]}, "1 latents, fewer than shards"),
    ],
)
def test_what_does_not_fit_is_refused(make_spec: MakeSpec, fields: dict[str, Any], message: str) -> None:
    common = {"name": "d", "sources": ["resid"], "num_latents": 48}
    facts = {"workers": {"num_workers": 2, "latent_shards": 2}, "num_epochs": 1, **fields}
    if "dictionaries" in fields:
        facts["dictionaries"] = [common | one for one in fields["dictionaries"]]
    with pytest.raises(ValidationError, match=message):
        make_spec(**facts)
