"""The course of a job, from the files that the code of jobs itself writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from deploy.service.access import Principal, Role
from deploy.service.app import build_service, create_app
from deploy.service.context import Service
from deploy.service.figures import POINTS, _curves, _records, read_figures
from deploy.service.settings import Settings
from pipeline.spec_file import validated
from pipeline.store.objects import Objects
from pipeline.training.tracker import JsonLines
from schemas.errors import ForbiddenError
from workers.collector import Receipt
from workers.decisions import UnitCommitted
from workers.events import EventLog, events_name, summary_place
from workers.telemetry import Telemetry


def collect_of(folder: Path) -> Any:
    return validated(
        {
            "kind": "collect", "name": "pile", "model": {"path": f"{folder}/model"}, "output": f"{folder}/lab/store",
            "hook_points": ["blocks.0.hook_resid_post"],
            "tokens": {"corpus": {"format": "text", "urls": [f"{folder}/lab/*.txt"]}},
        },
        where="test",
    )  # fmt: skip


def train_of(folder: Path) -> Any:
    return validated(
        {
            "kind": "train", "name": "sae", "store": f"{folder}/lab/store", "output": f"{folder}/lab/sae",
            "dictionaries": [{"name": "d", "sources": ["h"], "num_latents": 64}],
        },
        where="test",
    )  # fmt: skip


def record_of(step: int, **figures: Any) -> dict[str, Any]:
    return {
        "step": step, "tokens": step * 100, "learning_rate": 1e-3, "tokens_per_s": 1000.0, "stalled_s": 0.025,
        "dictionaries": {"d": figures},
    }  # fmt: skip


def anything(_url: str) -> None:
    pass


def test_stages_are_those_of_the_units_that_were_committed_last(tmp_path: Path) -> None:
    job = collect_of(tmp_path)
    folder, summary = summary_place(job)
    assert read_figures(job, anything).stages == []
    events = EventLog(folder, events_name(summary), job=job.name)
    telemetry = Telemetry(job.name, job.output, 400, events)
    for unit in range(300):
        seconds = {
            "read": 0.125,
            "forward": 2.0 if unit >= 44 else 99.0,
            "stall_forward": 0.5,
            "write": 1.0,
            "total": 4.0,
        }
        telemetry.note(UnitCommitted(0, unit), Receipt(unit, 128, 1000, 0, seconds))
    with (tmp_path / "lab" / "store.events.jsonl").open("a") as file:
        file.write('[1]\nnonsense\n{"event": "unit.committed", "store": "x", "seconds": 3}\n{"event": "unit.comm')
    (found,) = read_figures(job, anything).stages
    assert (found.store, found.units, found.binds) == (job.output, 256, "compute")
    assert found.busy_s == {"read": 32.0, "forward": 512.0, "write": 256.0}
    assert found.stalls_s == {"forward": 128.0}


def test_curves_are_thinned_from_the_first_step_to_the_last(tmp_path: Path) -> None:
    job = train_of(tmp_path)
    log = JsonLines(job.output, 0)
    for step in range(1, 3001):
        log.log(record_of(step, fvu=1 / step, l0=32.0, dead_share=float("nan") if step == 1 else 0.5))
    log.close()
    found = read_figures(job, anything)
    (curve,) = found.curves
    assert (curve.job, curve.dictionary, len(curve.steps)) == ("sae", "d", POINTS)
    assert (curve.steps[0], curve.steps[-1]) == (1, 3000)
    assert (curve.values["fvu"][0], curve.values["fvu"][-1]) == (1.0, 1 / 3000)
    assert (curve.values["dead_share"][0], curve.values["dead_share"][1]) == (None, 0.5)
    assert set(curve.values) == {"fvu", "l0", "dead_share"}
    assert (found.rows_per_s, found.stalled_share) == ({"sae": 1000.0}, {"sae": 0.25})


def test_a_model_that_is_trained_has_curves_of_its_own(tmp_path: Path) -> None:
    log = JsonLines(str(tmp_path), 0)
    log.log({"step": 0, "tokens": 0, "held_out_loss": 5.5})
    log.log({"step": 10, "tokens": 4096, "tokens_per_s": 1e4, "loss": 4.0, "gradient_norm": 1.0})
    log.log({"step": 20, "tokens": 8192, "tokens_per_s": 1e4, "loss": 3.0, "held_out_loss": 3.5})
    log.close()
    records = [*_records(Objects(str(tmp_path)), "metrics.jsonl", anything)]
    (curve,) = _curves("words", records)
    assert (curve.job, curve.dictionary, curve.steps) == ("words", "", [0, 10, 20])
    assert curve.values == {"loss": [None, 4.0, 3.0], "held_out_loss": [5.5, None, 3.5]}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    for folder in ("lab", "secret"):
        (tmp_path / folder).mkdir()
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump({"teams": {"lab": {"write": [str(tmp_path / "lab")]}}}))
    facts = {"database": f"sqlite:///{tmp_path}/db", "policy": str(tmp_path / "policy.yaml")}
    service = build_service(Settings.model_validate(facts))
    yield service
    service.engine.dispose()


def test_the_route_reads_what_the_team_may_read_and_follows_no_link_out_of_it(service: Service, tmp_path: Path) -> None:
    job, _ = service.jobs.accept(train_of(tmp_path), cluster="local", owner="eve", team="lab")
    token = service.tokens.create("eve", Role.VIEWER, "lab")
    client = TestClient(create_app(service), headers={"Authorization": f"Bearer {token}"})
    path = f"/api/v1/jobs/{job.id}/figures"
    assert client.get(path).json() == {"stages": [], "curves": [], "rows_per_s": {}, "stalled_share": {}}
    output = tmp_path / "lab" / "sae"
    output.mkdir()
    (tmp_path / "secret" / "metrics.jsonl").write_text(json.dumps(record_of(1, fvu=0.5)))
    (output / "metrics.jsonl").symlink_to(tmp_path / "secret" / "metrics.jsonl")
    assert client.get(path).status_code == 403
    (output / "metrics.jsonl").unlink()
    (output / "metrics.jsonl").write_text(json.dumps(record_of(1, fvu=0.5)))
    assert client.get(path).json()["curves"][0]["values"] == {"fvu": [0.5]}
    other = service.tokens.create("mallory", Role.SUBMITTER, "other")
    assert client.get(path, headers={"Authorization": f"Bearer {other}"}).status_code == 404
    assert service.policy is not None
    with pytest.raises(ForbiddenError):
        service.policy.require_readable(f"{tmp_path}/secret", Principal("eve", Role.VIEWER, "lab"))
