"""The example of circuits on Ray: the planted circuit, a task that is missed, a second run that computes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipeline.circuits.planted import CIRCUIT, save_planted
from schemas.circuit import CircuitSpec
from schemas.errors import ResourceError
from schemas.pipeline import JOB_ADAPTER
from workers.circuit import require_room
from workers.cluster import Cluster
from workers.run import run_job

EXAMPLE = Path(__file__).parents[2] / "examples" / "circuits.yaml"


@pytest.mark.ray
@pytest.mark.slow
def test_the_planted_circuit_from_its_store_to_the_report(
    ray_cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_planted(tmp_path / "runs/circuits/planted")
    data = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    data["jobs"][1]["tasks"] = ["single_double_quote", "for_while"]
    job = JOB_ADAPTER.validate_python(data)
    summary = run_job(job)
    output = tmp_path / "runs/circuits"

    found = summary["circuits"]["search"]
    assert (found["found"], found["missed"], found["refused"]) == (["single_double_quote"], ["for_while"], [])
    assert found["nonsense"] == "missed"
    figures = json.loads((output / "circuits.json").read_text())
    assert figures["tasks"]["single_double_quote"]["nodes"] == len(CIRCUIT)
    assert len(figures["tasks"]["single_double_quote"]["searches"]) == 2
    page = (output / "report.html").read_text()
    assert page.count('class="node"') >= len(CIRCUIT)
    assert "for_while" in page

    kept = {path.name: path.read_bytes() for path in (output / "searches").iterdir()}
    assert len(kept) == 6
    again = run_job(job)
    assert again["jobs"]["search"]["reused"]
    # What is missing alone is computed, and comes to the same bytes.
    (output / "searches/single_double_quote.1.json").unlink()
    third = run_job(job)
    assert not third["jobs"]["search"]["reused"]
    assert {path.name: path.read_bytes() for path in (output / "searches").iterdir()} == kept


def test_searches_that_will_never_have_room_are_refused() -> None:
    laptop = Cluster("local", num_cpus=2, num_gpus=0, is_own=True)
    facts = {"model": {"path": "m"}, "ablation": "zero", "output": "out"}
    require_room(CircuitSpec.model_validate(facts | {"workers": {"num_workers": 8, "cpus_per_search": 2}}), laptop)
    for workers, said in (
        ({"cpus_per_search": 3}, r"needs 3 CPU cores, this machine has 2; lower workers\.cpus_per_search"),
        ({"gpus_per_search": 0.5}, r"needs 0\.5 GPUs, this machine has 0; lower workers\.gpus_per_search"),
    ):
        with pytest.raises(ResourceError, match=said):
            require_room(CircuitSpec.model_validate(facts | {"workers": workers}), laptop)
