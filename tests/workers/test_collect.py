"""Collection on Ray: the store is the one that a single process writes, whatever dies on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import faults
import pytest
import ray
from small_job import HOOKS, WIDTH, built_table, digests, small_spec

from pipeline.collection.prepare import prepare
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.sweep import sweep
from schemas.collect import CollectSpec
from schemas.errors import BusyError, HookPointError, JobError, MismatchError, MissingError, ResourceError
from schemas.set_aside import SetAsideRecord
from workers.capacity import num_workers
from workers.cluster import Cluster
from workers.collect import run_collect

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
# The workers have no path to this folder.
ray.cloudpickle.register_pickle_by_value(faults)


@pytest.fixture(scope="module")
def make_spec(model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CollectSpec]:
    """Specs of one token table, which the first job makes and all others use."""
    table = tmp_path_factory.mktemp("table") / "tokens"
    return partial(small_spec, model, corpus, tokens={"output": str(table)})


@pytest.fixture(scope="module")
def undisturbed(make_spec: Callable[..., CollectSpec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store as one process writes it, without Ray."""
    spec = make_spec(tmp_path_factory.mktemp("undisturbed") / "store")
    (one,) = prepare(spec, built_table(spec))
    collector = UnitCollector.open(one.of)
    for _ in collect_units(collector, one.units):
        pass
    collector.writer.finish()
    return Path(spec.output)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where faults are armed."""
    (tmp_path / "faults").mkdir()
    return tmp_path / "faults"


def ledger(store: Path) -> dict[str, Any]:
    """Entries without what names the worker and its attempt; their seals cover those too."""
    entries = {}
    for path in sorted((store / "ledger").rglob("*.json")):
        entry = json.loads(path.read_bytes())
        entries[path.name] = {
            name: value for name, value in entry.items() if name in ("unit", "num_rows", "objects", "statistics")
        }
    return entries


def require_same(store: Path, undisturbed: Path) -> None:
    """Every object byte for byte, nothing more and nothing less; the ledger but for who wrote it."""
    ours, theirs = digests(store), digests(undisturbed)
    left_behind = {key for key in ours if key.endswith(".partial")}
    assert {key: text for key, text in ours.items() if key not in left_behind} == theirs
    assert ledger(store) == ledger(undisturbed)
    assert Store.open(str(store)).verify(deep=True) == []


def test_the_store_is_that_of_one_process_and_a_rerun_computes_nothing(
    make_spec: Callable[..., CollectSpec], tmp_path: Path, undisturbed: Path
) -> None:
    spec = make_spec(tmp_path / "store", tokens={})  # a table of its own, made on Ray
    summary = run_collect(spec)
    require_same(tmp_path / "store", undisturbed)
    store = Store.open(spec.output)
    assert summary["tokens"] == summary["tokens_computed"] == store.num_rows
    assert summary["units"] == store.num_units
    assert summary["units_reused"] == summary["worker_deaths"] == summary["retries"] == 0
    assert summary["hook_points"] == dict.fromkeys(HOOKS, WIDTH)
    assert (summary["fingerprint"], summary["table_fingerprint"]) == (store.fingerprint, store.table_fingerprint)
    assert summary["bytes"] > store.num_rows * WIDTH * 2 * 2
    assert summary["tokens_per_s"] > 0

    before = digests(tmp_path / "store")
    # Nothing but a class of its own could be started, and that has no methods.
    again = run_collect(spec, actor_class=object)  # type: ignore[arg-type]
    assert again["units_reused"] == again["units"] == summary["units"]
    assert again["reused"]
    assert (again["tokens"], again["bytes"], again["tokens_computed"]) == (summary["tokens"], summary["bytes"], 0)
    assert digests(tmp_path / "store") == before


@pytest.mark.slow
def test_a_kill_at_any_point_of_a_unit_changes_nothing(
    make_spec: Callable[..., CollectSpec], tmp_path: Path, folder: Path, undisturbed: Path
) -> None:
    armed = [("before_encode", 1), ("mid_write", 4), ("before_ledger", 7), ("after_ledger", 10), ("error", 12)]
    for fault, unit in armed:
        (folder / f"armed.{fault}.{unit}").touch()
    spec = make_spec(tmp_path / "store")
    summary = run_collect(spec, actor_class=faults.faulty_collector(folder))
    assert len(list(folder.glob("fired.*"))) == len(armed)
    assert summary["worker_deaths"] == 4
    assert summary["retries"] >= 4
    require_same(tmp_path / "store", undisturbed)


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(
    make_spec: Callable[..., CollectSpec], tmp_path: Path, folder: Path, undisturbed: Path
) -> None:
    source, over, killed = random.Random(3), threading.Event(), []

    def kill_now_and_then() -> None:
        while not over.wait(source.uniform(0.05, 0.4)) and len(killed) < 4:
            living = [path for path in folder.glob("pid.*") if path.name not in killed]
            if living:
                victim = source.choice(living)
                killed.append(victim.name)
                with suppress(ProcessLookupError):  # the job may have ended in this very moment
                    os.kill(int(victim.suffix[1:]), signal.SIGKILL)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        # One unit may be hit every time.
        spec = make_spec(tmp_path / "store", workers={"max_unit_deaths": 8})
        summary = run_collect(spec, actor_class=faults.faulty_collector(folder, pause_s=0.2))
    finally:
        over.set()
        killer.join()
    assert 2 <= summary["worker_deaths"] <= len(killed)
    require_same(tmp_path / "store", undisturbed)


def test_what_the_user_must_mend_comes_out_as_it_was_raised(
    make_spec: Callable[..., CollectSpec], tmp_path: Path
) -> None:
    spec = make_spec(tmp_path / "store", workers={"num_workers": 1})
    with pytest.raises(ResourceError) as caught:
        run_collect(spec, actor_class=faults.failing_collector("full"))
    assert type(caught.value) is ResourceError
    assert str(caught.value) == "the disk of /data is full: free 3 GiB"


def test_a_unit_that_always_fails_is_named(make_spec: Callable[..., CollectSpec], tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "store", workers={"num_workers": 1, "max_attempts": 2, "max_set_aside": 0})
    # A worker has several units at once: any of them may be the first to fail for good.
    with pytest.raises(JobError, match=r"unit (\d+) failed 2 times.*always in unit \1") as caught:
        run_collect(spec, actor_class=faults.failing_collector("bug"))
    (unit,) = SetAsideRecord.model_validate_json((tmp_path / "store.set_aside.json").read_text()).units
    assert (unit.errors, unit.deaths) == (2, 0)
    assert f"unit {unit.unit} failed 2 times" in str(caught.value)


def test_an_unknown_hook_point_names_the_nearest(make_spec: Callable[..., CollectSpec], tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "store", hook_points=["blocks.1.hook_mlp_on"], workers={"num_workers": 1})
    with pytest.raises(HookPointError, match=r"blocks\.1\.hook_mlp_"):
        run_collect(spec)
    assert not (tmp_path / "store").exists()


def test_a_store_of_other_facts_is_refused_before_any_worker_starts(
    make_spec: Callable[..., CollectSpec], tmp_path: Path, undisturbed: Path
) -> None:
    spec = make_spec(undisturbed, storage={"dtype": "float32"})
    with pytest.raises(MismatchError, match=r"storage\.dtype"):
        run_collect(spec, actor_class=object)  # type: ignore[arg-type]


def test_a_worker_that_no_cluster_can_hold_is_refused(ray_cluster: Cluster) -> None:
    spec = CollectSpec.model_fields["workers"].default
    assert num_workers(spec) == ray_cluster.num_cpus
    with pytest.raises(ResourceError, match="cpus_per_worker"):
        num_workers(spec.model_copy(update={"cpus_per_worker": 64}))
    with pytest.raises(ResourceError, match="GPUs"):
        num_workers(spec.model_copy(update={"gpus_per_worker": 1}))


INTERRUPTED = """
import sys
sys.path[:0] = sys.argv[3:]
from pathlib import Path
import faults, ray
ray.cloudpickle.register_pickle_by_value(faults)
from schemas.collect import CollectSpec
from schemas.pipeline import ClusterSpec
from workers.cluster import connect
from workers.collect import run_collect
from workers.progress import Progress
spec = CollectSpec.model_validate_json(sys.argv[1])
with connect(ClusterSpec(), sys.argv[2]):
    run_collect(spec, progress=Progress(sys.stderr), actor_class=faults.faulty_collector(Path(spec.output).parent, 0.3))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_says_what_is_kept_and_goes_on_later(
    number: signal.Signals,
    make_spec: Callable[..., CollectSpec],
    tmp_path: Path,
    undisturbed: Path,
    ray_cluster: Cluster,
) -> None:
    spec = make_spec(tmp_path / "store", workers={"num_workers": 1})
    said = interrupted(spec, ray_cluster.address, number)
    assert f"units are kept in {spec.output}" in said
    kept = len(committed(spec))
    summary = run_collect(spec)
    assert summary["units"] > summary["units_reused"] >= kept
    require_same(tmp_path / "store", undisturbed)


def interrupted(spec: CollectSpec, address: str, number: signal.Signals) -> str:
    """Run the job in another process, send the signal once two more units are committed; what it wrote to stderr."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "pipeline" / "collection")]
    command = [sys.executable, "-c", INTERRUPTED, spec.model_dump_json(), address, *paths]
    enough = len(committed(spec)) + 2
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job:
        deadline_s = time.monotonic() + 100
        while len(committed(spec)) < enough and time.monotonic() < deadline_s and job.poll() is None:
            time.sleep(0.05)
        job.send_signal(number)
        _, said = job.communicate(timeout=60)
    assert job.returncode != 0
    return said


def committed(spec: CollectSpec) -> list[str]:
    return list(Objects(spec.output).list("ledger/"))


@pytest.mark.slow
def test_nobody_sweeps_a_store_while_a_job_writes_to_it(
    make_spec: Callable[..., CollectSpec], tmp_path: Path, undisturbed: Path
) -> None:
    spec = make_spec(tmp_path / "store")
    refusals: list[str] = []

    def disturb() -> None:
        while not (tmp_path / "store" / "manifest.json").exists():
            try:
                sweep(spec.output, grace_s=0)
            except MissingError:
                time.sleep(0.05)  # the store is not there yet
            except BusyError as busy:
                refusals.append(str(busy))
                time.sleep(0.05)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    run_collect(spec)
    disturber.join()
    assert refusals
    assert "collect-" in refusals[0]
    require_same(tmp_path / "store", undisturbed)
    assert sweep(spec.output, grace_s=0).leftovers == []
