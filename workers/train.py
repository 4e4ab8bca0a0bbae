"""Training of dictionaries on Ray: the engine of ``pipeline.training`` in a worker group, see ``rank_group``."""

from __future__ import annotations

import json
import time
from typing import Any

import ray.train
import ray.train.torch

from pipeline.store.joined import open_any, store_urls
from pipeline.store.objects import Objects
from pipeline.store.retention import noted_use
from pipeline.training import engine, resume
from pipeline.training.identity import identity
from pipeline.training.points import points_of
from schemas.errors import SpecError
from schemas.fingerprint import fingerprint
from schemas.train import TrainSpec
from workers import board
from workers.live_blocks import FeedSource
from workers.live_notes import StallNotes
from workers.progress import Progress
from workers.rank_group import RankGroup, Watch, run_ranks
from workers.training_metrics import TrainingMetrics


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
    # A collection that runs at the same time holds the store by itself, if there is to be one.
    with noted_use([] if source else store_urls(spec.store), spec.name):
        return run_ranks(
            group_of(spec, fingerprint(facts)[:16]),
            _rank_loop,
            {"spec": spec.model_dump(mode="json"), "source": source},
            progress,
            watch=_watch(spec, progress),
            advice="lower batch_rows or num_latents",
        )


def group_of(spec: TrainSpec, run_id: str = "") -> RankGroup:
    """What the job asks of the cluster."""
    workers = spec.workers
    return RankGroup(
        job=spec.name, output=spec.output, run_id=run_id, num_workers=workers.num_workers,
        min_workers=workers.min_workers, cpus_per_worker=workers.cpus_per_worker, use_gpu=workers.use_gpu,
        max_failures=workers.max_failures,
    )  # fmt: skip


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


def _watch(spec: TrainSpec, progress: Progress) -> Watch:
    """Notes on stalls, and on how many ranks an elastic training has."""
    stalls = StallNotes(spec.name, "rows", progress)
    num_ranks = 0

    def watch(record: dict[str, Any]) -> None:
        nonlocal num_ranks
        if spec.workers.min_workers and record and record["num_ranks"] != num_ranks:
            num_ranks = record["num_ranks"]
            progress.note(f"{spec.name}: {num_ranks} ranks, {spec.workers.num_workers} at most")
        if spec.feed != "stored" and record:
            stalls.add(record["stalled_seconds"], time.perf_counter())

    return watch
