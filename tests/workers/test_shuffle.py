"""Shuffling on Ray: the store is the one that a single process writes, whatever dies on the way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import faults
import pytest
import ray
from small_store import ROW_BYTES, objects_of, shuffle_spec, write_source

from pipeline.shuffling.prepare import prepare
from pipeline.shuffling.tasks import Done, shuffle_here
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from schemas.errors import JobError, SpecError
from schemas.pipeline import JOB_ADAPTER
from workers.pool import Loaded
from workers.run import run_job
from workers.shuffle import Shuffler, Stage, run_shuffle

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
# The workers have no path to this folder.
ray.cloudpickle.register_pickle_by_value(faults)

MEMORY = 64 * ROW_BYTES


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("source") / "store")
    write_source(url)
    return url


@pytest.fixture(scope="module")
def undisturbed(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The new store as one process writes it with plenty of memory, in one pass."""
    output = tmp_path_factory.mktemp("undisturbed") / "store"
    shuffle_here(prepare(shuffle_spec(source, output)))
    return output


def mortal_shuffler(folder: Path) -> type[Shuffler]:
    """Dies by SIGKILL where it is armed to: before a task of a level, within one, or after one; each once."""

    class MortalObjects(Objects):
        def create(self, key: str, data: Any) -> bool:
            made = super().create(key, data)
            if key.startswith("activations/") and faults.fires(folder, "mid_gather", 0):
                os.kill(os.getpid(), 9)
            return made

        def write(self, key: str, data: Any) -> None:
            super().write(key, data)
            if key.endswith(".rows") and faults.fires(folder, "mid_scatter", 0):
                os.kill(os.getpid(), 9)

    class MortalShuffler(Shuffler):
        def load(self, stage: Stage, num_threads: int) -> Loaded:
            loaded = super().load(stage, num_threads)
            assert self._shuffling is not None
            for writer in self._shuffling.writers:
                object.__setattr__(writer, "objects", MortalObjects(writer.objects.url))
            runs = self._shuffling.runs
            object.__setattr__(runs, "objects", MortalObjects(runs.objects.url))
            return loaded

        def shuffle(self, task: int, attempt: int) -> Done:
            if faults.fires(folder, f"before_{self._level}", task):
                os.kill(os.getpid(), 9)
            if faults.fires(folder, f"error_{self._level}", task):
                raise RuntimeError("a passing trouble")
            done = super().shuffle(task, attempt)
            if faults.fires(folder, f"after_{self._level}", task):
                os.kill(os.getpid(), 9)
            return done

    return MortalShuffler


@pytest.mark.slow
def test_kills_at_any_point_of_a_task_change_nothing(source: str, tmp_path: Path, undisturbed: Path) -> None:
    armed = ["before_1.3", "mid_scatter.0", "error_1.9", "mid_gather.0", "after_0.7", "error_0.9"]
    for one in armed:
        (tmp_path / f"armed.{one}").touch()
    spec = shuffle_spec(source, tmp_path / "store", memory=MEMORY)
    summary = run_shuffle(spec, actor_class=mortal_shuffler(tmp_path), min_section_bytes=1)
    assert sorted(path.name.removeprefix("fired.") for path in tmp_path.glob("fired.*")) == sorted(armed)
    assert summary["passes"] == 2
    assert summary["worker_deaths"] == 4
    assert summary["retries"] >= 6
    assert objects_of(tmp_path / "store") == objects_of(undisturbed)
    store = Store.open(spec.output)
    assert store.verify(deep=True) == []
    assert summary["rows"] == store.num_rows
    assert summary["bytes_moved"] > 1.8 * store.num_rows * ROW_BYTES
    assert (summary["fingerprint"], summary["table_fingerprint"]) == (store.fingerprint, store.table_fingerprint)
    assert [*(tmp_path / "store.scratch").rglob("*.*")] == []

    # Nothing but a class of its own could be started, and that has no methods.
    again = run_shuffle(spec, actor_class=object)  # type: ignore[arg-type]
    assert again["reused"]
    assert again["bytes_moved"] == 0


@pytest.mark.slow
def test_a_task_that_always_fails_is_named_and_the_rest_is_kept(source: str, tmp_path: Path, undisturbed: Path) -> None:
    class Failing(Shuffler):
        def shuffle(self, task: int, attempt: int) -> Done:
            if self._level == 0 and task == 2:
                raise RuntimeError("always")
            return super().shuffle(task, attempt)

    spec = shuffle_spec(source, tmp_path / "store", memory=MEMORY, workers={"num_workers": 1, "max_attempts": 2})
    with pytest.raises(JobError, match=r"(?s)unit 2 .*2 errors.*always"):
        run_shuffle(spec, actor_class=Failing)
    summary = run_shuffle(spec)
    assert summary["buckets_reused"] >= 2
    assert objects_of(tmp_path / "store") == objects_of(undisturbed)


@pytest.mark.slow
def test_a_pipeline_trains_on_what_it_shuffled(source: str, tmp_path: Path) -> None:
    pipeline = {
        "kind": "pipeline",
        "output": str(tmp_path / "run"),
        "jobs": [
            {"kind": "shuffle", "store": source, "hook_points": ["resid"], "output": str(tmp_path / "shuffled")},
            {
                "kind": "train", "store": "${shuffle}", "batch_rows": 64, "order": {"mode": "sequential"},
                "dictionaries": [
                    {"name": "sae", "sources": ["resid"], "num_latents": 8, "activation": {"kind": "topk", "k": 2}}
                ],
                "trackers": [], "output": str(tmp_path / "dictionaries"),
            },
        ],
    }  # fmt: skip
    summary = run_job(JOB_ADAPTER.validate_python(pipeline))
    assert summary["status"] == "succeeded"
    assert summary["shuffles"]["shuffle"]["rows"] == 500
    assert summary["dictionaries"]["sae"]["training"]["fvu"] > 0
    lines = [json.loads(line) for line in (tmp_path / "dictionaries" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < lines[-1]["same_context_rate_ideal"] < 0.05
    record = json.loads((tmp_path / "dictionaries" / "sae" / "dictionary.json").read_text())
    assert record["table_fingerprint"] == Store.open(source).table_fingerprint, "whose documents it has seen"


def test_hook_points_that_nobody_has_are_refused_before_anything_runs(source: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"shuffle: hook_points names 'resit'.*resid"):
        run_job(shuffle_spec(source, tmp_path / "store", hook_points=["resit"]))
    assert not (tmp_path / "store").exists()
