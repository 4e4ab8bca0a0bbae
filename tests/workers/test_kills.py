"""Real processes killed on a cluster of several nodes, at every point of a unit: the store is the undisturbed one.

``HEADWORKS_KILL_SCHEDULES=N`` runs N schedules in the slow test instead of 3, 50 of them in ``make test-kills``;
``HEADWORKS_KILL_SEED`` is the first.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults
import pytest
from faulty_proxy import FAULTS, FaultyProxy
from kill_cluster import Fault, KillCluster, contents, kill_cluster, kill_job, require_same, schedule, wait_until
from kill_job import rows_of
from seaweed import BUCKET, serving
from small_job import built_table, digests, small_spec

from pipeline.collection.prepare import prepare
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from schemas.set_aside import SetAsideRecord

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

SLOW_SCHEDULES = int(os.environ.get("HEADWORKS_KILL_SCHEDULES", "3"))
FIRST_SEED = int(os.environ.get("HEADWORKS_KILL_SEED", "0"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[KillCluster]:
    with kill_cluster(num_nodes=1) as one:
        yield one


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process writes, without Ray."""
    job = kill_job(tmp_path_factory.mktemp("undisturbed"))
    writer = job.writer()
    for unit in range(writer.num_units):
        start, stop = writer.unit_rows(unit)
        writer.write_unit(unit, *rows_of(start, stop), worker="one", attempt=0, seconds={})
    writer.finish()
    return contents(job.store)


def run(cluster: KillCluster, folder: Path, armed: list[Fault], undisturbed: dict[str, Any]) -> dict[str, Any]:
    job = kill_job(folder)
    summary = cluster.run(job, armed)
    assert "error" not in summary, summary
    require_same(job.store, undisturbed, job.num_rows)
    return summary


def fired(folder: Path) -> set[str]:
    return {path.name.removeprefix("fired.") for path in (folder / "faults").glob("fired.*")}


@pytest.mark.parametrize("seed", [5, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (14, 8))])
def test_a_schedule_of_kills_changes_nothing(
    seed: int, cluster: KillCluster, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """Between them: the node, the worker and the controller die; see ``schedule``."""
    run(cluster, tmp_path, schedule(seed), undisturbed)


def test_schedules_kill_everybody_at_every_point() -> None:
    """Of the first fifty."""
    killed = {(fault.victim, fault.point) for seed in range(50) for fault in schedule(seed)}
    assert killed >= {(victim, point) for victim in faults.VICTIMS for point in faults.POINTS}
    assert {("error", ""), ("hang", "")} <= killed
    assert all(len({fault.unit for fault in schedule(seed)}) == len(schedule(seed)) for seed in range(50))


@pytest.mark.slow
def test_many_schedules_of_kills_change_nothing(
    cluster: KillCluster, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    deaths = 0
    for seed in range(FIRST_SEED, FIRST_SEED + SLOW_SCHEDULES):
        began = time.monotonic()
        summary = run(cluster, tmp_path / str(seed), schedule(seed), undisturbed)
        deaths += summary["deaths"]
        names = sorted(fault.name for fault in schedule(seed))
        print(f"seed {seed}: {time.monotonic() - began:.1f} s, {names}, {summary}", flush=True)
        # A fault may meet a unit that another attempt has committed already, but most strike.
        assert fired(tmp_path / str(seed))
    assert deaths > SLOW_SCHEDULES / 4


@pytest.mark.slow
def test_kills_on_a_storage_that_fails_now_and_then_change_nothing(
    tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real S3 server behind a proxy that refuses, delays, cuts and loses one request in twenty."""
    source = random.Random(FIRST_SEED)

    def choose(method: str, path: str) -> str | None:
        return source.choice(FAULTS) if source.random() < 0.05 else None

    with serving(tmp_path) as server, FaultyProxy(server.port, choose) as proxy:
        for name, value in server.through(proxy.port).items():
            monkeypatch.setenv(name, value)
        with kill_cluster(num_nodes=1) as cluster:
            for seed in range(FIRST_SEED, FIRST_SEED + max(1, SLOW_SCHEDULES // 10)):
                job = kill_job(tmp_path / str(seed), f"s3://{BUCKET}/kills/{seed}")
                summary = cluster.run(job, schedule(seed))
                assert "error" not in summary, summary
                require_same(job.store, undisturbed, job.num_rows)
        assert len(proxy.faults) >= 4, "of several kinds"


@pytest.mark.slow
def test_a_poisoned_unit_and_a_deadly_one_are_set_aside_and_the_next_run_computes_them(
    cluster: KillCluster, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    job = kill_job(tmp_path, max_unit_deaths=2)
    Path(job.folder).mkdir()
    (Path(job.folder) / "poison.3").touch()
    (Path(job.folder) / "deadly.7").touch()
    summary = cluster.driver.run(job)
    assert "2 units were set aside" in summary["error"]
    assert "unit 3 (unit 3): 3 errors" in summary["error"]
    place = tmp_path / "store.set_aside.json"
    record = SetAsideRecord.model_validate_json(place.read_text())
    of = {one.unit: one for one in record.units}
    assert (of[3].errors, of[3].deaths) == (3, 0)
    assert "RuntimeError: trouble in unit 3" in of[3].traceback
    assert "kill_job.py" in of[3].traceback, "where it was raised"
    assert (of[7].errors, of[7].deaths) == (0, 2)
    ledger = {int(Path(key).stem) for key in Objects(job.store).list("ledger/")}
    assert ledger == {*range(job.num_units)} - {3, 7}
    for path in Path(job.folder).glob("*.[37]"):
        path.unlink()
    again = cluster.driver.run(job)
    assert again["units"] == 2
    assert not place.exists()
    require_same(job.store, undisturbed, job.num_rows)


@pytest.mark.slow
def test_headworks_run_goes_on_without_its_driver_and_is_looked_on_again(
    cluster: KillCluster, model: Path, corpus: Path, tmp_path: Path
) -> None:
    """The real command, a real model: killed as soon as a unit is there, and run again at once."""
    spec = small_spec(model, corpus, tmp_path / "killed" / "store")
    (tmp_path / "spec.yaml").write_text(spec.model_dump_json())
    command = [str(Path(sys.executable).with_name("headworks")), "run", str(tmp_path / "spec.yaml"), "--json"]
    command += ["--address", cluster.nodes.address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        try:
            wait_until(lambda: any(Objects(spec.output).list("ledger/")))
        finally:
            driver.kill()
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert summary["status"] == "succeeded"
    alone = small_spec(model, corpus, tmp_path / "alone" / "store")
    (one,) = prepare(alone, built_table(alone))
    collector = UnitCollector.open(one.of)
    for _ in collect_units(collector, one.units):
        pass
    collector.writer.finish()
    assert digests(spec.output) == digests(alone.output)
    assert Store.open(spec.output).verify(deep=True) == []


@pytest.mark.slow
def test_workers_are_started_where_a_node_joins(cluster: KillCluster, tmp_path: Path) -> None:
    """Units wait until the test lets them go, so that a slow machine does not finish before the node is there."""
    job = kill_job(tmp_path, num_units=150)
    folder = Path(job.folder)
    folder.mkdir()
    held = [folder / f"hold.{unit}" for unit in range(job.num_units)]
    for path in held:
        path.touch()
    summary: dict[str, Any] = {}
    driver = threading.Thread(target=lambda: summary.update(cluster.run(job, [])))
    driver.start()
    wait_until(lambda: len(list(folder.glob("loaded.*"))) >= 2)
    cluster.nodes.tell("add")
    wait_until(lambda: len(list(folder.glob("loaded.*"))) >= 3)
    for path in held[:60]:
        path.unlink()
    wait_until(lambda: len(workers_of(job.store)) >= 3)
    cluster.nodes.tell("remove")
    for path in held[60:]:
        path.unlink()
    driver.join(200)
    assert (summary["units"], summary["preemptions"], summary["deaths"]) == (150, 1, 0)


def workers_of(store: str) -> set[str]:
    """Who has committed units."""
    objects = Objects(store)
    return {json.loads(objects.read(key))["worker"] for key in objects.list("ledger/")}


@pytest.mark.slow
def test_ctrl_c_stops_the_job_and_not_only_the_driver(
    cluster: KillCluster, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    job = kill_job(tmp_path)
    slow = type(job)(**{**job.__dict__, "pause_s": 1.0})
    summary: dict[str, Any] = {}
    driver = threading.Thread(target=lambda: summary.update(cluster.run(slow, [])))
    driver.start()
    wait_until(lambda: len(list(Objects(job.store).list("ledger/"))) >= 2)
    assert cluster.driver.process is not None
    cluster.driver.process.send_signal(signal.SIGINT)
    driver.join(60)
    assert summary == {"stopped": True}
    time.sleep(2)  # a process that is being killed may be at its last write
    kept = len(list(Objects(job.store).list("ledger/")))
    time.sleep(1.5)
    assert 2 <= kept == len(list(Objects(job.store).list("ledger/"))) < job.num_units, "nobody goes on"
    assert "error" not in cluster.driver.run(job)
    require_same(job.store, undisturbed, job.num_rows)
