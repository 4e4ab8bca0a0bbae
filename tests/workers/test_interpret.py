"""An interpretation and the evaluation that shows it, as jobs of one pipeline on Ray."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline" / "interpretation"))

from planted_letters import plant

from schemas.pipeline import PipelineSpec
from workers.run import run_job


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_explanations_go_from_job_to_job(tmp_path: Path) -> None:
    planted = plant(tmp_path / "planted")
    given = {"store": planted.store, "dictionaries": planted.dictionaries}
    meanings = {"kind": "interpret", "name": "meanings", "context_tokens": 6, "output": f"{tmp_path}/meanings"}
    page = {
        "kind": "evaluate", "interpretation": "${meanings}", "rows": "all", "cross_entropy_tokens": 0,
        "output": f"{tmp_path}/page",
    }  # fmt: skip
    job = PipelineSpec.model_validate({"jobs": [meanings | given, page | given], "output": str(tmp_path / "run")})
    summary = run_job(job)
    found = summary["dictionaries"]["letters"]["interpretation"]
    assert found["num_explained"] == 9
    assert found["mean"]["fuzzing"]["accuracy"] == 1.0
    assert "latents" not in found
    assert [one["reused"] for one in summary["jobs"].values()] == [False, False]
    assert [one["reused"] for one in run_job(job)["jobs"].values()] == [True, True]
