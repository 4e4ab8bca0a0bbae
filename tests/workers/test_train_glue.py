"""Training under Ray Train: a killed rank changes nothing, errors come out as themselves, finished work is reused."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.store.rows import TokenRows
from pipeline.store.words import to_words
from pipeline.store.writer import StoreWriter
from schemas.errors import DivergenceError, MismatchError, ResourceError
from schemas.fingerprint import fingerprint
from schemas.store import PassRecord, StoreRecord
from schemas.train import TrainSpec
from workers.cluster import Cluster
from workers.progress import Progress
from workers.train import SCRATCH, require_room, run_train

NUM_ROWS, D = 1600, 16

pytestmark = pytest.mark.ray


def write_store(url: str, poison: bool = False) -> str:
    """Sums of 3 of 40 directions at the hook point ``resid``; ``poison`` puts an infinity into one row."""
    random = np.random.default_rng(0)
    codes = np.zeros((NUM_ROWS, 40))
    for row in codes:
        row[random.choice(40, 3, replace=False)] = random.uniform(1, 2, 3)
    acts = codes @ random.normal(size=(40, D))
    if poison:
        acts[NUM_ROWS // 2 + 3, 3] = np.inf
    identity = {"model": {"path": "planted"}, "poison": poison}
    record = StoreRecord(
        fingerprint=fingerprint(identity), identity=identity, table_fingerprint="table", dtype="bfloat16",
        chunk_rows=100, shard_rows=NUM_ROWS, codec="none", table_url="", specials={}, spec={}, versions={},
    )  # fmt: skip
    writer = StoreWriter.open(url, record, PassRecord(hook_points={"resid": D}, batch_tokens=64), num_rows=NUM_ROWS)
    rows = np.arange(NUM_ROWS)
    tokens = TokenRows(
        row=rows, token_id=rows % 50, document_id=rows // 10, position=rows % 10, held_out=np.zeros(NUM_ROWS, bool)
    )
    words = to_words(acts.astype(np.float32), "bfloat16")
    writer.write_unit(0, {"resid": words}, tokens, worker="test", attempt=0, seconds={})
    writer.finish()
    return url


@pytest.fixture(scope="module")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_store(str(tmp_path_factory.mktemp("planted") / "store"))


@pytest.fixture
def make_spec(store_url: str, tmp_path: Path) -> Callable[..., TrainSpec]:
    def make(output: str = "out", **fields: Any) -> TrainSpec:
        activation = {"kind": "topk", "k": 3, "aux_k": 8, "dead_after_tokens": 300}
        facts = {
            "store": store_url,
            "dictionaries": [{"name": "sae", "sources": ["resid"], "num_latents": 64, "activation": activation}],
            "batch_rows": 96,
            "num_epochs": 12,
            "checkpoint_every_steps": 20,
            "log_every_steps": 1,
            "trackers": [],
            "workers": {"num_workers": 2},
            "output": str(tmp_path / output),
        }
        return TrainSpec.model_validate(facts | fields)

    return make


def steps_logged(output: str) -> list[int]:
    path = Path(output, "metrics.jsonl")
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def ranks() -> list[psutil.Process]:
    """Processes of the worker group, children of the Ray that this process started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.pid)


@pytest.fixture
def kill_a_rank() -> Iterator[Callable[[str, int], threading.Thread]]:
    """Starts a thread that kills the last rank with SIGKILL once the output has logged a step."""
    threads: list[threading.Thread] = []

    def kill_at(output: str, step: int) -> threading.Thread:
        def watch() -> None:
            while max(steps_logged(output), default=0) < step:
                time.sleep(0.01)
            os.kill(ranks()[-1].pid, signal.SIGKILL)

        threads.append(threading.Thread(target=watch, daemon=True))
        threads[-1].start()
        return threads[-1]

    yield kill_at
    for thread in threads:
        thread.join(timeout=10)


@pytest.mark.slow
def test_a_killed_rank_changes_no_byte(
    ray_cluster: object,
    make_spec: Callable[..., TrainSpec],
    kill_a_rank: Callable[[str, int], threading.Thread],
) -> None:
    calm, hit = make_spec("calm"), make_spec("hit")
    undisturbed = run_train(calm, progress=Progress())
    killer = kill_a_rank(hit.output, 50)
    shown = io.StringIO()
    disturbed = run_train(hit, progress=Progress(shown))
    assert not killer.is_alive()
    assert (undisturbed["restarts"], disturbed["restarts"]) == (0, 1)
    assert "attempt 1 ended" in shown.getvalue()
    weights = Path("sae", "dictionary.safetensors")
    assert Path(hit.output, weights).read_bytes() == Path(calm.output, weights).read_bytes()
    # Every step is in the log once, those after the checkpoint that the kill undid included.
    assert steps_logged(hit.output) == list(range(1, disturbed["steps"] + 1))
    assert not Path(hit.output, SCRATCH).exists()

    again = run_train(calm, progress=Progress())
    assert again["reused"]
    assert again["dictionaries"] == undisturbed["dictionaries"]
    with pytest.raises(MismatchError, match="batch_rows"):
        run_train(make_spec("calm", batch_rows=100), progress=Progress())


def test_what_a_rank_raises_comes_out_as_itself_and_is_not_repeated(
    ray_cluster: object, make_spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    poisoned = write_store(str(tmp_path / "poisoned"), poison=True)
    shown = io.StringIO()
    with pytest.raises(DivergenceError, match="finite"):
        run_train(make_spec(store=poisoned), progress=Progress(shown))
    assert "attempt" not in shown.getvalue()


def test_a_machine_too_small_is_told_before_anything_starts(make_spec: Callable[..., TrainSpec]) -> None:
    laptop = Cluster(address="", num_cpus=2, num_gpus=0, is_own=True)
    require_room(make_spec(), laptop)
    with pytest.raises(ResourceError, match="3 CPU cores, this machine has 2"):
        require_room(make_spec(workers={"num_workers": 3}), laptop)
    with pytest.raises(ResourceError, match="1 GPUs, this machine has 0"):
        require_room(make_spec(workers={"use_gpu": True}), laptop)
