"""Telemetry: from events and decisions to numbers and lines, without Ray, and from a real Ray to its metrics page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from small_job import small_spec

from schemas.errors import ResourceError
from workers import metrics
from workers.collector import Receipt
from workers.decisions import (
    Finish,
    LeaseUnit,
    RetryUnit,
    SetAside,
    StartWorker,
    UnitCommitted,
    UnitFailed,
    WorkerDied,
    WorkerReady,
)
from workers.events import EventLog
from workers.metrics import Series
from workers.pool import Loaded
from workers.telemetry import Telemetry
from workers.training_metrics import TrainingMetrics

SECONDS = {"read": 0.5, "forward": 2.0, "stall_write": 0.25, "total": 3.0}


class Recorder:
    """Stands in for Ray's objects: keeps what was recorded, by series and the values of its tags."""

    def __init__(self) -> None:
        self.values: dict[str, dict[tuple[str, ...], float]] = defaultdict(lambda: defaultdict(float))

    def of(self, series: Series) -> Any:
        values = self.values[series.name]

        class One:
            def inc(self, amount: float, tags: dict[str, str]) -> None:
                assert amount > 0
                values[_key(series, tags)] += amount

            def set(self, value: float, tags: dict[str, str]) -> None:
                values[_key(series, tags)] = value

            observe = inc

        return One()


def _key(series: Series, tags: dict[str, str]) -> tuple[str, ...]:
    return tuple(tags[name] for name in series.tags if name not in ("job_name", "store"))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    kept = Recorder()
    monkeypatch.setattr(metrics, "_recorder", kept.of)
    return kept


def loaded(peak: float = 1000.0) -> Loaded:
    return Loaded({}, 7, "node", 1.5, flop_per_token=10.0, peak_flop_per_s=peak, peak_source="operator")


def receipt(unit: int, attempt: int = 0) -> Receipt:
    return Receipt(unit, num_rows=100, size_bytes=1600, attempt=attempt, seconds=SECONDS)


def test_events_and_decisions_become_numbers(recorder: Recorder) -> None:
    now = [0.0]
    told = Telemetry("c", "runs/store", num_units=5, clock=lambda: now[0])
    told.decided(StartWorker(0))
    told.decided(StartWorker(1))
    told.note(WorkerReady(0), loaded())
    told.note(WorkerReady(1), loaded())
    for worker, unit in ((0, 0), (1, 1), (1, 2)):
        told.decided(LeaseUnit(worker, unit, 0))
    queue = recorder.values["headworks_queue_units"]
    assert queue == {("waiting",): 2, ("leased",): 3, ("done",): 0, ("set_aside",): 0}
    now[0] = 2.0
    told.note(UnitCommitted(0, 0), receipt(0))
    # 100 rows of 10 operations in 2 s, on two devices that could do 1000 a second.
    assert told.utilisation == pytest.approx(0.25)
    told.note(WorkerDied(1, "lost", is_preempted=True))
    told.decided(RetryUnit(1, "worker 1 died: lost"))
    told.decided(RetryUnit(2, "worker 1 died: lost"))
    told.decided(LeaseUnit(0, 1, 1))
    told.note(UnitFailed(0, 1, RuntimeError("no")))
    told.decided(RetryUnit(1, "RuntimeError: no"))
    told.decided(SetAside(3, 3, 0, "RuntimeError: no", ""))
    assert queue == {("waiting",): 3, ("leased",): 0, ("done",): 1, ("set_aside",): 1}
    values = recorder.values
    assert values["headworks_retries"] == {("preempted",): 2, ("RuntimeError",): 1}
    assert values["headworks_worker_deaths"] == {("preempted",): 1}
    assert values["headworks_workers"] == {("loading",): 0, ("ready",): 1}
    assert values["headworks_tokens"] == {(): 100}
    assert values["headworks_bytes"] == {(): 1600}
    assert values["headworks_stage_seconds"] == {("read",): 0.5, ("forward",): 2.0}
    assert values["headworks_stall_seconds"] == {("write",): 0.25}
    assert values["headworks_unit_seconds"] == {(): 3.0}
    assert values["headworks_model_flop"] == {(): 1000}
    assert values["headworks_peak_flop_per_s"] == {(): 1000}
    told.decided(Finish())
    told.ended()
    assert values["headworks_workers"] == {("loading",): 0, ("ready",): 0}
    assert values["headworks_flop_utilisation"] == {(): 0}


def test_events_and_decisions_become_lines(recorder: Recorder, tmp_path: Path) -> None:
    told = Telemetry("c", "runs/store", num_units=2, events=EventLog(str(tmp_path), "events.jsonl", job="c"))
    told.decided(StartWorker(0))
    told.note(WorkerReady(0), loaded())
    told.decided(LeaseUnit(0, 0, 0))
    told.note(UnitFailed(0, 0, RuntimeError("at s3://KEY:SECRET@bucket"), traceback="in forward: s3://KEY:SECRET@b"))
    told.decided(RetryUnit(0, "RuntimeError: at s3://KEY:SECRET@bucket"))
    told.decided(LeaseUnit(0, 0, 1))
    told.note(UnitCommitted(0, 0), receipt(0, attempt=1))
    told.note(UnitFailed(0, 1, ResourceError("disk full")))
    told.note(WorkerDied(0, "killed"))
    text = (tmp_path / "events.jsonl").read_text()
    assert "SECRET" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["event"] for line in lines] == [
        "worker.started", "worker.ready", "unit.failed", "unit.retried", "unit.committed", "unit.failed", "worker.died",
    ]  # fmt: skip
    failed, retried, committed, full = lines[2:6]
    assert failed["traceback"] == "in forward: s3://***@b"
    assert (retried["unit"], retried["cause"]) == (0, "RuntimeError")
    wanted = {"store": "runs/store", "unit": 0, "attempt": 1, "worker": 0, "host": "node", "rows": 100, "bytes": 1600}
    assert {name: committed[name] for name in wanted} == wanted
    assert committed["seconds"] == SECONDS
    assert full["error"] == "ResourceError"
    assert "traceback" not in full


def test_without_ray_recording_changes_nothing() -> None:
    """In a process of its own, where Ray is imported and never started."""
    script = (
        "from workers import metrics\n"
        "for series in metrics.all_series().values():\n"
        "    tags = dict.fromkeys(series.tags, 'x')\n"
        "    {'counter': series.add, 'gauge': series.set, 'histogram': series.observe}[series.kind](1.0, **tags)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_records_of_training_become_gauges(recorder: Recorder) -> None:
    told = TrainingMetrics("t")
    figures = {"loss": 2.0, "fvu": 0.3, "l0": 4.0, "dead_share": 0.5, "aux_loss": 1.0}
    common = {"num_steps": 30, "tokens_per_s": 50.0, "dictionaries": {"sae": figures}}
    told.record({**common, "step": 10, "tokens": 1000, "stalled_s": 0.0})
    told.record({**common, "step": 20, "tokens": 1900, "stalled_s": 0.5})
    values = {name: dict(found) for name, found in recorder.values.items()}
    assert values["headworks_train_rows"] == {(): 900}
    assert values["headworks_train_stall_seconds"] == {(): 0.5}
    assert values["headworks_train_step"] == {(): 20}
    assert values["headworks_train_dead_share"] == {("sae",): 0.5}
    assert values["headworks_train_fvu"] == {("sae",): 0.3}


_JOB = """
import json, sys, time, urllib.request
import ray
from pathlib import Path
from schemas.pipeline import JOB_ADAPTER
from workers import metrics
from workers.run import run_job

ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=90 * 2**20, log_to_driver=False,
         _system_config={"metrics_report_interval_ms": 500})
run_job(JOB_ADAPTER.validate_python(json.loads(sys.argv[1])))
node = ray.nodes()[0]
address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
wanted = sys.argv[2].split(",")
until = time.monotonic() + 40
while True:
    page = urllib.request.urlopen(address, timeout=5).read().decode()
    if all(name in page for name in wanted) or time.monotonic() > until:
        break
    time.sleep(0.3)
print(page)
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_s_numbers_are_on_the_page_that_prometheus_reads(model: Path, corpus: Path, tmp_path: Path) -> None:
    """A Ray of its own, without its dashboard: the agent of the node serves the page."""
    spec = small_spec(model, corpus, tmp_path / "store", name="scraped")
    series = [metrics.TOKENS, metrics.BYTES, metrics.UNITS, metrics.UNIT_SECONDS, metrics.STAGE_SECONDS, metrics.QUEUE]
    series += [metrics.WORKERS, metrics.LOAD_SECONDS, metrics.MODEL_FLOP, metrics.PEAK_FLOP_PER_S, metrics.JOBS]
    names = [name for each in series for name in each.exported_names]
    done = subprocess.run(
        [sys.executable, "-c", _JOB, spec.model_dump_json(), ",".join(names)],
        env=os.environ | {"HEADWORKS_PEAK_FLOP_PER_S": "1e9"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    page = {line.split("{")[0]: line for line in done.stdout.splitlines() if line.startswith("ray_headworks")}
    assert set(names) <= set(page)
    assert 'job_name="scraped"' in page["ray_headworks_tokens_total"]
    lines = [json.loads(line) for line in (tmp_path / "store.events.jsonl").read_text().splitlines()]
    rows = sum(line["rows"] for line in lines if line["event"] == "unit.committed")
    assert float(page["ray_headworks_tokens_total"].rpartition(" ")[2]) == rows > 0
    assert lines[0]["event"] == "job.started"
    assert (lines[-1]["event"], lines[-1]["status"]) == ("job.ended", "succeeded")
    assert {"read", "forward", "encode", "write", "total"} <= set(lines[-2].get("seconds", {}) or lines[-3]["seconds"])
