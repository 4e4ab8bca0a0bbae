"""A job in the cluster that several drivers look on, without the store: what is shown, stopped, restarted."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from schemas.collect import CollectSpec
from schemas.errors import JobError, ResourceError
from workers.cluster import NAMESPACE
from workers.detached import actor_name, run_detached
from workers.progress import Progress

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def spec(output: Path, **changes: Any) -> CollectSpec:
    return CollectSpec.model_validate({
        "model": {"path": "m"}, "hook_points": ["h"], "output": str(output),
        "tokens": {"corpus": {"format": "text", "urls": ["a"]}}, **changes,
    })  # fmt: skip


def making(work: Callable[..., dict[str, Any]], folder: Path) -> Callable[..., dict[str, Any]]:
    """``work(folder, progress)``, picklable by value."""
    return partial(_call, work, str(folder))


def _call(work: Callable[..., dict[str, Any]], folder: str, *, progress: Any) -> dict[str, Any]:
    return work(Path(folder), progress)


@pytest.fixture(autouse=True, scope="module")
def _by_value() -> None:
    import sys

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def counts(folder: Path, progress: Progress) -> dict[str, Any]:
    """Counts lives and counts up to ten; dies once where it is told to."""
    life = len(list(folder.glob("life.*")))
    (folder / f"life.{life}").write_text(str(os.getpid()))
    progress.note(f"life {life}")
    with progress.task("counting", unit="steps", total=10) as task:
        for _ in range(10):
            while (folder / "wait").exists():
                time.sleep(0.02)
                task.tick()
            task.advance(1)
    return {"life": life}


def fails(folder: Path, progress: Progress) -> dict[str, Any]:
    (folder / f"life.{len(list(folder.glob('life.*')))}").touch()
    raise ResourceError("the disk is full: free 3 GiB")


def wait_for(path: Path) -> None:
    deadline_s = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline_s, f"no {path}"
        time.sleep(0.02)


def test_what_the_job_shows_is_shown_and_its_summary_comes_back(tmp_path: Path) -> None:
    said = io.StringIO()
    summary = run_detached(spec(tmp_path), making(counts, tmp_path), Progress(said, interval_s=0))
    assert summary == {"life": 0}
    assert "life 0\n" in said.getvalue()
    assert "counting: 10/10 steps" in said.getvalue()


def test_an_error_comes_out_as_it_was_raised_and_the_next_run_tries_again(tmp_path: Path) -> None:
    for life in range(2):
        with pytest.raises(ResourceError, match="free 3 GiB"):
            run_detached(spec(tmp_path), making(fails, tmp_path), Progress())
        assert (tmp_path / f"life.{life}").exists()


def test_a_second_driver_looks_on_a_dead_controller_comes_back_and_both_get_the_summary(tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    said = [io.StringIO(), io.StringIO()]
    summaries: list[dict[str, Any]] = []

    def drive(index: int, **changes: Any) -> None:
        one = spec(tmp_path, **changes)
        summaries.append(run_detached(one, making(counts, tmp_path), Progress(said[index])))

    first = threading.Thread(target=drive, args=(0,))
    first.start()
    wait_for(tmp_path / "life.0")
    # Neither the name of the job nor its resources make it another job.
    second = threading.Thread(target=drive, args=(1,), kwargs={"name": "other", "workers": {"num_workers": 3}})
    second.start()
    while "looking on" not in said[1].getvalue():
        time.sleep(0.02)
    os.kill(int((tmp_path / "life.0").read_text()), signal.SIGKILL)
    wait_for(tmp_path / "life.1")
    (tmp_path / "wait").unlink()
    first.join(60)
    second.join(60)
    assert summaries == [{"life": 1}, {"life": 1}]
    for one in said:
        assert "the controller died and was started again" in one.getvalue()
        assert "life 1" in one.getvalue()


def test_a_job_that_is_stopped_is_gone_and_others_are_told(tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    errors: list[BaseException] = []
    said = io.StringIO()

    def drive() -> None:
        try:
            run_detached(spec(tmp_path), making(counts, tmp_path), Progress(said))
        except JobError as error:
            errors.append(error)

    driver = threading.Thread(target=drive, daemon=True)
    driver.start()
    # A driver that has not seen the job yet would take its end for that of an earlier run, and begin anew.
    deadline_s = time.monotonic() + 60
    while "life 0" not in said.getvalue():
        assert time.monotonic() < deadline_s, "the driver does not see the job"
        time.sleep(0.02)
    ray.kill(ray.get_actor(actor_name(spec(tmp_path)), namespace=NAMESPACE), no_restart=True)
    driver.join(60)
    assert "gone from the cluster" in str(errors[0])
