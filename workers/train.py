"""Training on Ray: the engine as a worker group of Ray Train, one process per rank, gloo on CPUs and NCCL on GPUs.

Ray Train gives processes, a process group and news of deaths. State is the engine's own: it resumes from its
checkpoints in the output, so a group that starts anew goes on by itself. Each attempt is a fresh run of Ray Train:

    1. start the group; the ranks call ``pipeline.training.engine.train``
    2. a rank raised one of our errors: it is final and comes out as it was raised
    3. a rank died, or failed otherwise: start again, at most ``workers.max_failures`` times; of an elastic training
       with as many ranks as there is room for then

Ray Train's own restarts are off, since they repeat errors that a repetition cannot mend. Nothing is reported through
``ray.train.report``: it is a collective, and progress is no reason for ranks to wait for each other.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import ray
import ray.train
import ray.train.torch
from ray.train import TrainingFailedError

from pipeline.store.joined import open_any, store_urls
from pipeline.store.objects import Objects
from pipeline.store.retention import noted_use
from pipeline.training import engine, resume
from pipeline.training.identity import identity
from pipeline.training.points import points_of
from schemas.errors import HeadworksError, JobError, ResourceError, SpecError
from schemas.fingerprint import fingerprint
from schemas.train import TrainSpec
from workers import board, metrics
from workers.cluster import Cluster
from workers.events import described
from workers.live_blocks import FeedSource
from workers.live_notes import StallNotes
from workers.progress import Progress, Task
from workers.training_metrics import TrainingMetrics

SCRATCH = ".ray"
"""Folder in the output that Ray Train wants for itself; removed when training ends."""

POLL_S = 0.5
GROUP_STARTS = 10
"""Attempts, of a minute each, at finding room for the group: an autoscaler may be adding machines."""


def run_train(spec: TrainSpec, *, progress: Progress, source: FeedSource | None = None) -> dict[str, Any]:
    """Train on the connected Ray; the engine's summary, ``restarts`` and ``num_ranks``, how many there were at the end.
    A finished output is returned as it is, with 0 of both.

    Paths in the spec are absolute or URLs: ranks have working directories of their own. ``source``: the collection
    that feeds the training, where it is not ``stored``; without one feed ``follow`` reads what another run collects.

    Raises:
        SpecError: feed live or tee without a collection.
        HeadworksError: what a rank raised, see ``engine.train``.
        JobError: the group failed more than ``workers.max_failures`` times.
    """
    if source is None and spec.feed != "stored":
        source = _elsewhere(spec)
    facts = _identity(spec, source)
    if summary := _finished(spec, facts):
        progress.note(f"{spec.name}: {spec.output} is trained already, reused")
        return summary
    for attempt in range(spec.workers.max_failures + 1):
        try:
            # A collection that runs at the same time holds the store by itself, if there is to be one.
            with noted_use([] if source else store_urls(spec.store), spec.name):
                summary = _fit(spec, fingerprint(facts)[:16], attempt, source, progress)
        except TrainingFailedError as failure:
            cause = _cause(failure)
            if isinstance(cause, HeadworksError):
                raise cause from None
            progress.note(f"{spec.name}: attempt {attempt + 1} ended: {_first_line(cause)}")
            progress.event("training.attempt_ended", output=spec.output, attempt=attempt, **described(cause))
            metrics.TRAIN_RESTARTS.add(attempt < spec.workers.max_failures, job_name=spec.name)
            last = cause
        else:
            return {**summary, "restarts": attempt}
    raise JobError(
        f"training failed {spec.workers.max_failures + 1} times (workers.max_failures is {spec.workers.max_failures}); "
        f"the last time: {last}\nA rank that dies without an error was most often killed for its memory: lower "
        f"batch_rows or num_latents, or give it more. The last checkpoint in {spec.output} is kept; run again to go on."
    ) from last


def finished_summary(spec: TrainSpec, source: FeedSource) -> dict[str, Any] | None:
    """The summary of a training that is complete, without starting anything. Raises MismatchError."""
    return _finished(spec, _identity(spec, source))


def _elsewhere(spec: TrainSpec) -> FeedSource:
    if spec.feed != "follow":
        raise SpecError(
            f"{spec.name}: feed {spec.feed} is handed rows by a collect job: put both into one pipeline, or use feed: "
            "follow"
        )
    return FeedSource.of_store(str(spec.store))


def _identity(spec: TrainSpec, source: FeedSource | None) -> dict[str, Any]:
    if source is not None:
        return identity(spec, store_fingerprint=source.record.fingerprint, num_rows=source.num_rows)
    store = open_any(spec.store, points_of(spec))
    return identity(spec, store_fingerprint=store.fingerprint, num_rows=store.num_rows)


def _finished(spec: TrainSpec, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of an output that is complete, without starting a group to find out."""
    outputs = Objects(spec.output)
    if not outputs.exists(engine.COMPLETE):
        return None
    record = json.loads(outputs.read(engine.COMPLETE))
    resume.require_same_run(facts, record["identity"], spec.output)
    engine.require_all_trained(spec, record["summary"])
    return {**record["summary"], "reused": True, "restarts": 0, "num_ranks": 0}


def require_room(spec: TrainSpec, cluster: Cluster) -> None:
    """Refuse a group that a cluster of fixed size can never hold; an autoscaler's cluster may have yet to grow.

    Raises:
        ResourceError: more cores or GPUs are asked for than there are.
    """
    workers = spec.workers
    field = "min_workers" if workers.min_workers else "num_workers"
    num_ranks = workers.min_workers or workers.num_workers
    demands = [
        ("CPU cores", num_ranks * workers.cpus_per_worker, cluster.num_cpus),
        ("GPUs", num_ranks * workers.use_gpu, cluster.num_gpus),
    ]
    for what, wanted, there in demands:
        if wanted > there:
            raise ResourceError(
                f"{spec.name}: workers.{field} ({num_ranks}) ranks need {wanted:g} {what}, this machine "
                f"has {there:g}; lower workers.{field} or workers.cpus_per_worker"
            )


def _fit(spec: TrainSpec, name: str, attempt: int, source: FeedSource | None, progress: Progress) -> dict[str, Any]:
    """One group from its start to its end; its rank 0's summary."""
    # Ray Train says at length what the progress display says in a line; its log files keep everything.
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # An actor that warns ranks of preemptions: ours have nothing to do then that they do not do anyway.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    notices = board.open_board()
    with _scratch(spec.output) as place:
        # ray.train's annotations are those of its first version.
        train: Any = ray.train
        trainer = train.torch.TorchTrainer(
            _rank_loop,
            train_loop_config={
                "spec": spec.model_dump(mode="json"),
                "board": notices,
                "source": source,
                "attempt": attempt,
            },
            scaling_config=_scaling(spec),
            torch_config=train.torch.TorchConfig(backend="nccl" if spec.workers.use_gpu else "gloo"),
            run_config=train.RunConfig(
                name=f"{spec.name}-{name}-{attempt}",
                failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=GROUP_STARTS),
                **place,
            ),
        )
        return _watched(trainer, notices, spec, progress)


def _scaling(spec: TrainSpec) -> Any:
    resources = {"CPU": spec.workers.cpus_per_worker}
    if spec.workers.use_gpu:
        resources["GPU"] = 1
    least, most = spec.workers.min_workers, spec.workers.num_workers
    # With two numbers Ray chooses: at each start of a group, and every minute while it runs.
    num_workers: Any = (least, most) if least else most
    return ray.train.ScalingConfig(
        num_workers=num_workers, use_gpu=spec.workers.use_gpu, resources_per_worker=resources
    )


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


def _rank_loop(config: dict[str, Any]) -> dict[str, Any] | None:
    """What a rank runs. Only rank 0 returns the summary."""
    import torch

    from pipeline.training.world import torch_world

    spec = TrainSpec.model_validate(config["spec"])
    num_threads = max(1, int(spec.workers.cpus_per_worker))
    torch.set_num_threads(num_threads)
    world = torch_world(spec.workers.latent_shards)
    source: FeedSource | None = config["source"]
    reader = (int(config["attempt"]), world.rank, world.size)
    summary = engine.train(
        spec,
        world,
        store=None if source is None else source.open(spec, points_of(spec), reader),
        report=_reporter(spec.name, config["board"], world.size) if world.rank == 0 else None,
        device=ray.train.torch.get_device(),
        num_threads=num_threads,
    )
    return {**summary, "num_ranks": world.size} if world.rank == 0 else None


def _reporter(job: str, notices: Any, num_ranks: int) -> engine.Report:
    """For rank 0: the progress display and Prometheus."""
    post, gauges = board.poster(notices), TrainingMetrics(job)

    def report(record: dict[str, Any]) -> None:
        post({**record, "num_ranks": num_ranks})
        gauges.record(record)

    return report


def _watched(trainer: Any, notices: Any, spec: TrainSpec, progress: Progress) -> dict[str, Any]:
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
    stalls = StallNotes(spec.name, "rows", progress)
    num_ranks = 0
    with progress.task(spec.name, unit="steps") as task:
        thread.start()
        while thread.is_alive():
            thread.join(POLL_S)
            record = board.read(notices)
            _show(task, record)
            if spec.workers.min_workers and record and record["num_ranks"] != num_ranks:
                num_ranks = record["num_ranks"]
                progress.note(f"{spec.name}: {num_ranks} ranks, {spec.workers.num_workers} at most")
            if spec.feed != "stored" and record:
                stalls.add(record["stalled_seconds"], time.perf_counter())
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
