"""A collect job and the train jobs that it feeds, run at the same time.

1. The token table is built and the collection planned: what rows there will be is known then.
2. The cores are shared out: the ranks get theirs, the collection the rest.
3. Collection and trainings run, a thread each in this process. The first of them that fails ends the others, and so
   does an interrupt; what was committed, and the last checkpoints, are kept.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray

from pipeline.collection.prepare import CollectPass, planned_rows, prepare, store_record
from pipeline.order.live import blocks_ahead
from pipeline.planning.stages import Job, Stage
from pipeline.tokens.table import TokenTable
from pipeline.training.checkpoint import Checkpoints
from schemas.collect import CollectSpec
from schemas.errors import HeadworksError, JobError, ResourceError
from schemas.train import TrainSpec
from workers.cluster import NAMESPACE, Cluster
from workers.collect import collect_table, run_collect
from workers.live_blocks import FeedSource
from workers.live_collect import run_live_collect
from workers.live_exchange import BlockExchange
from workers.live_forward import tee_collector
from workers.live_progress import JointProgress
from workers.progress import Progress
from workers.train import finished_summary, run_train

Recorded = Callable[[Job, Callable[[], dict[str, Any]]], None]

_END_S = 30.0
"""How long a job that has been told to end may take; its processes end with Ray in any case."""
_JOIN_S = 0.5


def run_stage(stage: Stage, cluster: Cluster, progress: Progress, recorded: Recorded) -> None:
    """Run a collection and what it feeds. ``recorded(job, work)`` does the work of a job, each in a thread of its own.

    The collection runs in this process, also on a Ray that outlives it: what it feeds ends with the process.

    Raises:
        HeadworksError: of the job that failed first.
    """
    collection = stage.first
    assert isinstance(collection, CollectSpec)
    table = collect_table(collection, progress)
    plan = _plan(collection, table, stage.fed)
    source = FeedSource(collection.output, plan.record, plan.table_url, plan.num_rows)
    if _is_live(stage) and (found := _reused(stage, plan, source)) is not None:
        progress.note(f"{collection.name}: {stage.fed[0].name} is trained already, nothing to compute")
        for job in stage.jobs:
            recorded(job, lambda job=job: found[job.name])  # type: ignore[misc]
        return
    plan = replace(plan, spec=collection.model_copy(update={"workers": _shared(collection, stage.fed, cluster)}))
    name = f"headworks-exchange-{secrets.token_hex(8)}"
    exchange = _exchange(name, plan, stage.fed)
    if not any(Checkpoints(training.output).steps() for training in stage.fed):
        exchange.expect.remote(0)
    try:
        with JointProgress(progress) as joint:
            work = _work(stage, plan, table, replace(source, exchange=name), exchange, joint)
            jobs = {job.name: partial(recorded, job, work[job.name]) for job in stage.jobs}
            _Together(jobs, exchange, joint, is_live=_is_live(stage)).run()
    finally:
        ray.kill(exchange, no_restart=True)


def _is_live(stage: Stage) -> bool:
    return any(training.feed == "live" for training in stage.fed)


def _plan(collection: CollectSpec, table: TokenTable, fed: Sequence[TrainSpec]) -> CollectPass:
    """The rows that there will be. A live feed has those that the job asks for, whatever lies at its output."""
    if any(training.feed == "live" for training in fed):
        record = store_record(collection, table)
        num_rows = planned_rows(collection, table.num_rows)
        return CollectPass(collection, record, table.url, tuple(collection.hook_points), num_rows)
    return prepare(collection, table)[0].of


def _reused(stage: Stage, plan: CollectPass, source: FeedSource) -> dict[str, dict[str, Any]] | None:
    """Job name -> figures of a live stage whose training is complete."""
    trained = {training.name: finished_summary(training, source) for training in stage.fed}
    found = {name: summary for name, summary in trained.items() if summary is not None}
    if len(found) < len(trained):
        return None
    figures = {
        "tokens": plan.num_rows,
        "tokens_computed": 0,
        "bytes": 0,
        "reused": True,
        "fingerprint": plan.record.fingerprint,
        "table_fingerprint": plan.record.table_fingerprint,
    }
    return {stage.first.name: figures, **found}


def _shared(collection: CollectSpec, fed: Sequence[TrainSpec], cluster: Cluster) -> Any:
    """The collection's workers, as many as have room beside the ranks.

    Raises:
        ResourceError: there is no room for both on a cluster that is what it is.
    """
    workers = collection.workers
    ranks_cpus = sum(one.workers.num_workers * one.workers.cpus_per_worker for one in fed)
    ranks_gpus = sum(one.workers.num_workers * one.workers.use_gpu for one in fed)
    fits = [(cluster.num_cpus - ranks_cpus) / workers.cpus_per_worker]
    if workers.gpus_per_worker:
        fits.append((cluster.num_gpus - ranks_gpus) / workers.gpus_per_worker)
    wanted = workers.num_workers or 1
    if min(fits) < wanted and (cluster.is_own or not workers.num_workers):
        raise ResourceError(
            f"{', '.join(one.name for one in fed)} runs while {collection.name} does: ranks of {ranks_cpus:g} CPU "
            f"cores and {ranks_gpus:g} GPUs, and {wanted} workers of {workers.cpus_per_worker:g} and "
            f"{workers.gpus_per_worker:g}, do not fit into {cluster.num_cpus:g} and {cluster.num_gpus:g}. Lower "
            "workers.num_workers or workers.cpus_per_worker of either, or use feed: stored, which runs them in turn."
        )
    return workers if workers.num_workers else workers.model_copy(update={"num_workers": int(min(fits))})


def _exchange(name: str, plan: CollectPass, fed: Sequence[TrainSpec]) -> Any:
    """The actor in which ranks and forward processes meet."""
    num_workers = plan.spec.workers.num_workers
    ahead = max(
        blocks_ahead(one, chunk_rows=plan.record.chunk_rows, shard_rows=plan.record.shard_rows, num_workers=num_workers)
        for one in fed
    )
    options = {"num_cpus": 0, "name": name, "namespace": NAMESPACE, "max_restarts": 0, "max_concurrency": 1000}
    return ray.remote(BlockExchange).options(**options).remote(plan.num_units, ahead)


def _work(
    stage: Stage, plan: CollectPass, table: TokenTable, source: FeedSource, exchange: Any, progress: Progress
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Job name -> what it does."""
    collection = plan.spec

    def collect() -> dict[str, Any]:
        if _is_live(stage):
            return run_live_collect(plan, exchange, collection.workers.num_workers, progress)
        if any(training.feed == "tee" for training in stage.fed):
            actor_class = tee_collector(source.exchange)
            return run_collect(collection, progress=progress, actor_class=actor_class, table=table)
        return run_collect(collection, progress=progress, table=table)

    trainings = {one.name: partial(run_train, one, progress=progress, source=source) for one in stage.fed}
    return {collection.name: collect, **trainings}


@dataclass
class _Together:
    """Threads of one stage. The first job is the collection."""

    jobs: Mapping[str, Callable[[], None]]
    exchange: Any
    progress: JointProgress
    is_live: bool
    done: set[str] = field(default_factory=set)
    errors: list[tuple[str, BaseException]] = field(default_factory=list)
    """In the order in which they came."""

    def run(self) -> None:
        """Until all are done. Raises the first error."""
        threads = {
            name: threading.Thread(target=self._run, args=(name, job), name=f"headworks-{name}", daemon=True)
            for name, job in self.jobs.items()
        }
        try:
            for thread in threads.values():
                thread.start()
            self._wait(list(threads.values()))
        except BaseException:
            self._end(threads, JobError("the run was stopped"))
            raise
        if self.errors:
            name, error = self.errors[0]
            reason = JobError(f"{name}, which runs at the same time, has failed: {error}")
            self._end(threads, reason, patience_s=_END_S if name == next(iter(self.jobs)) else 0.0)
            raise error

    def _wait(self, threads: Sequence[threading.Thread]) -> None:
        """Until all threads have ended or one has failed; a live collection goes on as long as somebody trains."""
        is_told = False
        while any(thread.is_alive() for thread in threads) and not self.errors:
            for thread in threads:
                thread.join(_JOIN_S / len(threads))
            if self.is_live and not is_told and len(self.done) == len(self.jobs) - 1:
                self.exchange.finish.remote()
                is_told = True

    def _run(self, name: str, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            self.errors.append((name, error))
        else:
            self.done.add(name)

    def _end(self, threads: dict[str, threading.Thread], reason: HeadworksError, *, patience_s: float = 0.0) -> None:
        """Have all jobs end that are still running. Ranks hear of it from the exchange and have ``patience_s`` to end
        by themselves, so that nothing of them is left behind on a Ray that goes on."""
        self.exchange.fail.remote(reason)
        _join(threads, patience_s)
        self.progress.stop.set()
        _join(threads, _END_S)


def _join(threads: dict[str, threading.Thread], seconds: float) -> None:
    deadline_s = time.monotonic() + seconds
    for thread in threads.values():
        thread.join(max(0.0, deadline_s - time.monotonic()))
