"""A worker group of Ray Train: one process per rank, gloo on CPUs and NCCL on GPUs, for whatever trains in steps.

Ray Train gives processes, a process group and news of deaths. State is the engines' own: they resume from their
checkpoints in the output, so a group that starts anew goes on by itself. Each attempt is a fresh run of Ray Train:

    1. start the group; the ranks call the engine
    2. a rank raised one of our errors: it is final and comes out as it was raised
    3. a rank died, or failed otherwise: start again, at most ``max_failures`` times; of an elastic training with as
       many ranks as there is room for then

Ray Train's own restarts are off, since they repeat errors that a repetition cannot mend. Nothing is reported through
``ray.train.report``: it is a collective, and progress is no reason for ranks to wait for each other.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import ray
import ray.train
import ray.train.torch
from ray.train import TrainingFailedError

from schemas.errors import HeadworksError, JobError, ResourceError
from workers import board, metrics
from workers.cluster import Cluster
from workers.events import described
from workers.progress import Progress, Task

SCRATCH = ".ray"
"""Folder in the output that Ray Train wants for itself; removed when training ends."""

POLL_S = 0.5
GROUP_STARTS = 10
"""Attempts, of a minute each, at finding room for the group: an autoscaler may be adding machines."""

Loop = Callable[[dict[str, Any]], dict[str, Any] | None]
"""What a rank runs, with the configuration; only rank 0 returns the summary. Its ``board`` is where it posts records
with ``step`` and ``num_steps``, its ``attempt`` counts from 0."""

Watch = Callable[[dict[str, Any]], None]
"""Called again and again with the latest record of the board, empty before the first."""


@dataclass(frozen=True)
class RankGroup:
    """What a training asks of the cluster."""

    job: str
    output: str
    run_id: str
    """Of the training: runs of Ray Train are named by it."""
    num_workers: int
    cpus_per_worker: float
    use_gpu: bool
    max_failures: int
    min_workers: int = 0
    """Elastic: at least as many ranks; 0: always ``num_workers``."""


def run_ranks(
    group: RankGroup, loop: Loop, config: dict[str, Any], progress: Progress, *, watch: Watch | None = None, advice: str
) -> dict[str, Any]:
    """Run ``loop`` on all ranks until it is through; rank 0's summary and ``restarts``.

    ``advice``: what to change where ranks are killed for their memory.

    Raises:
        HeadworksError: what a rank raised.
        JobError: the group failed more than ``max_failures`` times.
    """
    for attempt in range(group.max_failures + 1):
        try:
            summary = _fit(group, loop, config, attempt, progress, watch)
        except TrainingFailedError as failure:
            cause = _cause(failure)
            if isinstance(cause, HeadworksError):
                raise cause from None
            progress.note(f"{group.job}: attempt {attempt + 1} ended: {_first_line(cause)}")
            progress.event("training.attempt_ended", output=group.output, attempt=attempt, **described(cause))
            metrics.TRAIN_RESTARTS.add(attempt < group.max_failures, job_name=group.job)
            last = cause
        else:
            return {**summary, "restarts": attempt}
    raise JobError(
        f"training failed {group.max_failures + 1} times (workers.max_failures is {group.max_failures}); "
        f"the last time: {last}\nA rank that dies without an error was most often killed for its memory: {advice}, or "
        f"give it more. The last checkpoint in {group.output} is kept; run again to go on."
    ) from last


def require_room(group: RankGroup, cluster: Cluster) -> None:
    """Refuse a group that a cluster of fixed size can never hold; an autoscaler's cluster may have yet to grow.

    Raises:
        ResourceError: more cores or GPUs are asked for than there are.
    """
    field = "min_workers" if group.min_workers else "num_workers"
    num_ranks = group.min_workers or group.num_workers
    demands = [
        ("CPU cores", num_ranks * group.cpus_per_worker, cluster.num_cpus),
        ("GPUs", num_ranks * group.use_gpu, cluster.num_gpus),
    ]
    for what, wanted, there in demands:
        if wanted > there:
            raise ResourceError(
                f"{group.job}: workers.{field} ({num_ranks}) ranks need {wanted:g} {what}, this machine "
                f"has {there:g}; lower workers.{field} or workers.cpus_per_worker"
            )


def _fit(
    group: RankGroup, loop: Loop, config: dict[str, Any], attempt: int, progress: Progress, watch: Watch | None
) -> dict[str, Any]:
    """One group from its start to its end; its rank 0's summary."""
    # Ray Train says at length what the progress display says in a line; its log files keep everything.
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # An actor that warns ranks of preemptions: ours have nothing to do then that they do not do anyway.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    notices = board.open_board()
    with _scratch(group.output) as place:
        # ray.train's annotations are those of its first version.
        train: Any = ray.train
        trainer = train.torch.TorchTrainer(
            loop,
            train_loop_config={**config, "board": notices, "attempt": attempt},
            scaling_config=_scaling(group),
            torch_config=train.torch.TorchConfig(backend="nccl" if group.use_gpu else "gloo"),
            run_config=train.RunConfig(
                name=f"{group.job}-{group.run_id}-{attempt}",
                failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=GROUP_STARTS),
                **place,
            ),
        )
        return _watched(trainer, notices, group.job, progress, watch)


def _scaling(group: RankGroup) -> Any:
    resources = {"CPU": group.cpus_per_worker}
    if group.use_gpu:
        resources["GPU"] = 1
    # With two numbers Ray chooses: at each start of a group, and every minute while it runs.
    num_workers: Any = (group.min_workers, group.num_workers) if group.min_workers else group.num_workers
    return ray.train.ScalingConfig(num_workers=num_workers, use_gpu=group.use_gpu, resources_per_worker=resources)


@contextmanager
def _scratch(output: str) -> Iterator[dict[str, Any]]:
    """``storage_path`` and ``storage_filesystem`` for Ray Train below the output, empty before and gone after.

    Empty, since Ray Train silently takes up an old run that it finds under the same name. Through fsspec where the
    output is not local, so that one set of credentials serves all.
    """
    url = f"{output.rstrip('/')}/{SCRATCH}"
    filesystem, path = fsspec.core.url_to_fs(url)
    _remove(filesystem, path)
    try:
        if "file" in filesystem.protocol:
            Path(path).mkdir(parents=True, exist_ok=True)
            yield {"storage_path": path}
        else:
            handler = pyarrow.fs.FSSpecHandler(filesystem)
            yield {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(handler)}
    finally:
        _remove(filesystem, path)


def _remove(filesystem: Any, path: str) -> None:
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def _watched(trainer: Any, notices: Any, job: str, progress: Progress, watch: Watch | None) -> dict[str, Any]:
    """``trainer.fit()`` in a thread while this one shows progress.

    In the main thread ``fit`` would take over Ctrl-C and end the interpreter.
    """
    outcome: dict[str, Any] = {}

    def fit() -> None:
        try:
            outcome["result"] = trainer.fit()
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that can act on it
            outcome["error"] = error

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    with progress.task(job, unit="steps") as task:
        thread.start()
        while thread.is_alive():
            thread.join(POLL_S)
            record = board.read(notices)
            _show(task, record)
            if watch is not None:
                watch(record)
        _show(task, board.read(notices))
        if "error" in outcome:
            raise outcome["error"]
    summary: dict[str, Any] = outcome["result"].return_value
    return summary


def _show(task: Task, record: dict[str, Any]) -> None:
    if not record or record["step"] == task.done:
        task.tick()
        return
    if not task.total:
        # Neither the start of the group nor what an earlier run had done is in the rate.
        task.total, task.started_s = record["num_steps"], task.clock()
        task.reused = task.done = record["step"]
    task.advance(record["step"] - task.done)


def _cause(failure: TrainingFailedError) -> BaseException:
    """What a rank raised, one of our errors before anything else: the others of its group die of its absence."""
    failures = list(getattr(failure, "worker_failures", {}).values())
    causes: list[BaseException] = [getattr(each, "_base_exc", each) for each in failures]
    ours = [cause for cause in causes if isinstance(cause, HeadworksError)]
    return (ours or causes or [getattr(failure, "controller_failure", failure)])[0]


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
