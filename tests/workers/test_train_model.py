"""Models trained under Ray Train: a killed rank changes no byte, a pipeline collects the snapshots that it trained."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rank_kills import kill_at, steps_logged
from small_model import model_spec

from pipeline.store.joined import open_any
from pipeline.store.reader import Store
from schemas.errors import MismatchError
from schemas.pipeline import PipelineSpec
from workers.cluster import Cluster
from workers.progress import Progress
from workers.rank_group import SCRATCH
from workers.run import run_job
from workers.train_model import run_train_model

pytestmark = pytest.mark.ray


def weights(output: str, folder: str) -> bytes:
    return Path(output, folder, "model.safetensors").read_bytes()


@pytest.mark.long
def test_a_killed_rank_changes_no_byte(ray_cluster: Cluster, tmp_path: Path) -> None:
    fields = {"steps": 300, "snapshots": [0, 120, 300], "checkpoint_every_steps": 50, "workers": {"num_workers": 2}}
    calm, hit = (model_spec(str(tmp_path / name), **fields) for name in ("calm", "hit"))
    undisturbed = run_train_model(calm, progress=Progress())
    killer = kill_at(hit.output, 130, -1)
    shown = io.StringIO()
    disturbed = run_train_model(hit, progress=Progress(shown))
    assert not killer.is_alive()
    assert (undisturbed["restarts"], disturbed["restarts"]) == (0, 1)
    assert "attempt 1 ended" in shown.getvalue()
    for folder in ("model", "snapshots/step0", "snapshots/step120", "snapshots/step300"):
        assert weights(calm.output, folder) == weights(hit.output, folder)
    assert steps_logged(hit.output) == steps_logged(calm.output)
    assert not Path(hit.output, SCRATCH).exists()

    again = run_train_model(calm, progress=Progress())
    assert again["reused"]
    with pytest.raises(MismatchError, match="steps"):
        run_train_model(model_spec(calm.output, **fields | {"steps": 301}), progress=Progress())


@pytest.mark.slow
def test_a_pipeline_collects_the_snapshots_that_it_trained(ray_cluster: Cluster, tmp_path: Path) -> None:
    model = model_spec(f"{tmp_path}/model", snapshots=[0, 3, 30]).model_dump(mode="json") | {"name": "model"}
    collect = {
        "kind": "collect",
        "name": "collect",
        "model": {"path": "${model}", "dtype": "float32"},
        "snapshots_of": "${model}",
        "tokens": {
            "corpus": model["tokens"]["corpus"], "packing": model["tokens"]["packing"], "max_tokens": 512,
        },
        "hook_points": ["blocks.0.hook_resid_post", "blocks.0.mlp.hook_post"],
        "batch_tokens": 128,
        "storage": {"dtype": "float32", "chunk_rows": 64, "shard_rows": 256},
        "workers": {"num_workers": 1},
        "output": f"{tmp_path}/group",
    }  # fmt: skip
    spec = PipelineSpec.model_validate({"jobs": [model, collect], "output": str(tmp_path / "run")})
    summary = run_job(spec)
    assert summary["status"] == "succeeded"
    assert [*summary["models"]] == ["model"]
    group = open_any(f"{tmp_path}/group")
    assert {hook.partition("/")[0] for hook in group.hook_points} == {"step0", "step3", "step30"}
    first, last = (Store.open(f"{tmp_path}/group/{name}") for name in ("step0", "step30"))
    rows = [store.read_values("blocks.0.hook_resid_post", 0, 64) for store in (first, last)]
    assert np.isfinite(rows[0]).all()
    assert not np.array_equal(*rows)
    assert np.array_equal(first.tokens(0, 64).token_id, last.tokens(0, 64).token_id)
    again = run_job(spec)
    assert all(job["reused"] for job in again["jobs"].values())
