"""Training under Ray Train: a killed rank changes nothing, errors come out as themselves, finished work is reused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rank_kills import kill_at, steps_logged
from small_training import train_spec, write_store

from schemas.errors import DivergenceError, JobError, MismatchError, ResourceError
from schemas.train import TrainSpec
from workers.cluster import Cluster
from workers.progress import Progress
from workers.rank_group import SCRATCH, require_room
from workers.train import group_of, run_train

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_store(str(tmp_path_factory.mktemp("planted") / "store"))


@pytest.fixture
def make_spec(store_url: str, tmp_path: Path) -> Callable[..., TrainSpec]:
    return lambda output="out", **fields: train_spec(store_url, str(tmp_path / output), **fields)


@pytest.mark.slow
def test_a_killed_rank_changes_no_byte(ray_cluster: object, make_spec: Callable[..., TrainSpec]) -> None:
    calm, hit = make_spec("calm"), make_spec("hit")
    undisturbed = run_train(calm, progress=Progress())
    killer = kill_at(hit.output, 50, -1)
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


@pytest.mark.slow
def test_a_killed_run_goes_on_with_another_number_of_ranks(
    ray_cluster: object, make_spec: Callable[..., TrainSpec]
) -> None:
    calm, hit = (
        make_spec("calm", workers={"num_workers": 1}),
        make_spec("hit", workers={"max_failures": 0, "num_workers": 2}),
    )
    run_train(calm, progress=Progress())
    killer = kill_at(hit.output, 50, -2)
    with pytest.raises(JobError, match="max_failures is 0"):
        run_train(hit, progress=Progress())
    assert not killer.is_alive()
    again = run_train(hit.model_copy(update={"workers": calm.workers}), progress=Progress())
    # The rows that are left at the end of an epoch are a batch, too.
    assert again["tokens"] == 12 * 1440
    logs = [Path(spec.output, "metrics.jsonl").read_text().splitlines() for spec in (calm, hit)]
    for one, other in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert (one["step"], one["tokens"]) == (other["step"], other["tokens"])
        assert one["dictionaries"]["sae"] == pytest.approx(other["dictionaries"]["sae"], rel=1e-3, abs=1e-5)


@pytest.mark.slow
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
    require_room(group_of(make_spec()), laptop)
    with pytest.raises(ResourceError, match="3 CPU cores, this machine has 2"):
        require_room(group_of(make_spec(workers={"num_workers": 3})), laptop)
    with pytest.raises(ResourceError, match="1 GPUs, this machine has 0"):
        require_room(group_of(make_spec(workers={"use_gpu": True})), laptop)
