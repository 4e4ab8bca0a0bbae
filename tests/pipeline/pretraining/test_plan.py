"""A plan of a training says what the training then has, and plans what uses the model before it is there."""

from __future__ import annotations

from pathlib import Path

from small_model import model_spec

from pipeline.planning.jobs import plan
from pipeline.pretraining.engine import pretrain
from pipeline.pretraining.prepare import prepare
from pipeline.training.world import SingleWorld
from schemas.pipeline import PipelineSpec
from schemas.plan import PlanAssumptions, Rates


def test_what_is_planned_is_what_is_trained(tmp_path: Path) -> None:
    training = model_spec(str(tmp_path / "model"), name="model", tokenizer={"kind": "words", "vocab_size": 15})
    facts = training.model_dump(mode="json")
    collect = {
        "kind": "collect", "model": {"path": "${model}", "dtype": "float32"}, "snapshots": "${model}",
        "tokens": facts["tokens"], "hook_points": ["blocks.0.hook_resid_post"], "output": str(tmp_path / "group"),
    }  # fmt: skip
    job = PipelineSpec.model_validate({"jobs": [facts, collect], "output": str(tmp_path)})
    assumptions = PlanAssumptions(rates=Rates(flop_per_s=1e9))
    first, *stores = plan(job, assumptions).jobs
    assert not Path(training.output).exists()
    assert first.model is not None
    assert (first.model.steps, first.model.tokens, first.model.snapshots) == (30, 30 * 256, 4)
    assert first.model.hours == first.model.flop / 1e9 / 3600
    assert [one.store.hook_points if one.store else None for one in stores] == [{"blocks.0.hook_resid_post": 16}] * 3

    summary = pretrain(training, prepare(training), SingleWorld())
    assert summary["parameters"] == first.model.parameters
    written = sum(path.stat().st_size for path in (tmp_path / "model").rglob("*.safetensors"))
    # Headers of the files are not planned; they are much of files as small as these.
    assert 0.6 * written < first.model.size_bytes < written
    again, *stores = plan(job, assumptions).jobs
    assert again.model is not None
    assert again.model.steps == 0
    rows = [one.store.rows.value if one.store else 0 for one in stores]
    assert rows == [300 * 16] * 3
