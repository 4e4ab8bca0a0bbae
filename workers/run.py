"""Any job from its spec to its summary: connects Ray, runs the jobs of a pipeline in order, writes ``summary.json``.

A collection and the trainings that it feeds run at the same time, see ``live_stage``; all other jobs one by one.

The summary is written when the first job begins and again after each, so that a reader sees how far a run is; its
``status`` is ``running``, then ``succeeded``, ``failed`` or ``stopped``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.collection.snapshots import snapshot_jobs
from pipeline.planning.stages import Job, Stage, stages
from pipeline.spec_paths import anchored
from pipeline.store.joined import group_urls
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from schemas.circuit import CircuitSpec
from schemas.collect import CollectSpec
from schemas.errors import DataError, MissingError, SpecError, nearest
from schemas.evaluate import EvaluateSpec
from schemas.interpret import InterpretSpec
from schemas.pipeline import AnyJob, ClusterSpec, PipelineSpec
from schemas.shuffle import ShuffleSpec
from schemas.train import TrainSpec
from schemas.train_model import TrainModelSpec
from schemas.versions import versions
from workers import metrics
from workers.cluster import Cluster, connect
from workers.collect import run_collect
from workers.detached import run_detached
from workers.events import EventLog, described, events_name, summary_place
from workers.live_stage import run_stage
from workers.progress import Progress
from workers.shuffle import run_shuffle
from workers.snapshots import run_snapshots

_OF_A_MODEL = (
    "steps", "tokens", "parameters", "nonzero", "nonzero_share", "loss", "held_out_loss", "tokens_per_s", "restarts",
)  # fmt: skip
"""Figures of a train_model job that the summary has."""


def run_job(job: AnyJob, *, address: str | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Run a job here or on the Ray at ``address``, and return its summary, see ``summarised``.

    Relative paths mean the current directory. What an earlier run of the same job has finished is reused.

    Raises:
        HeadworksError: what the job raised; what was committed is kept.
    """
    job = anchored(job, Path.cwd())
    jobs = job.resolved() if isinstance(job, PipelineSpec) else [job]
    parts = stages(jobs)
    require_hook_points(jobs)
    run = _Run(job, _earlier(job))
    progress = progress or Progress()
    progress.events = run.events
    try:
        with connect(job.cluster if isinstance(job, PipelineSpec) else ClusterSpec(), address) as cluster:
            for each in jobs:
                if isinstance(each, TrainSpec | TrainModelSpec | CircuitSpec) and cluster.is_own:
                    _require_room(each, cluster)
            for part in parts:
                run.write("running")
                run.add(part, cluster, progress)
    except Exception as error:
        run.write("failed", error=f"{type(error).__name__}: {error}")
        raise
    except KeyboardInterrupt:
        run.write("stopped")
        raise
    return run.write("succeeded")


def _require_room(job: TrainSpec | TrainModelSpec | CircuitSpec, cluster: Cluster) -> None:
    from workers import circuit, train, train_model
    from workers.rank_group import require_room

    if isinstance(job, CircuitSpec):
        circuit.require_room(job, cluster)
        return
    require_room(train.group_of(job) if isinstance(job, TrainSpec) else train_model.group_of(job), cluster)


def require_hook_points(jobs: Sequence[Job]) -> None:
    """Refuse, before anything is computed, training on hook points that its store does not have and will not get.

    Raises:
        SpecError: naming the dictionary, the hook point and what is near.
        MissingError: there is no store, and no earlier job makes it.
    """
    collected: dict[str, set[str]] = {}
    for job in jobs:
        if isinstance(job, CollectSpec):
            collected |= _collected(job)
        if isinstance(job, TrainModelSpec | CollectSpec | EvaluateSpec | InterpretSpec | CircuitSpec):
            continue
        known = _fed_points(job, jobs) or _known_points(job.store, collected)
        if isinstance(job, ShuffleSpec):
            for point in job.hook_points:
                if point not in known:
                    raise SpecError(_unknown(f"{job.name}: hook_points names", point, job.store, known))
            collected[job.output] = set(job.hook_points or known) | _stored(job.output)
            continue
        for dictionary in job.dictionaries:
            for point in [*dictionary.sources, *dictionary.target_points]:
                if point not in known:
                    wanted = f"{job.name}: dictionary {dictionary.name!r} needs the hook point"
                    raise SpecError(_unknown(wanted, point, str(job.store), known))


def _collected(job: CollectSpec) -> dict[str, set[str]]:
    """URL -> hook points, of the store that the job makes, or of its group and of each store of that; those that an
    earlier collection left in the same place count as well."""
    if not job.is_group:
        return {job.output: set(job.hook_points) | _stored(job.output)}
    found = {name: set(one.hook_points) | _stored(one.output) for name, one in snapshot_jobs(job).items()}
    earlier = {name: _stored(url) for name, url in (group_urls(job.output) or {}).items() if name not in found}
    stores = {f"{job.output.rstrip('/')}/{name}": points for name, points in found.items()}
    return {**stores, job.output: {f"{name}/{hook}" for name, hooks in (found | earlier).items() for hook in hooks}}


def _fed_points(job: ShuffleSpec | TrainSpec, jobs: Sequence[Job]) -> set[str]:
    """Hook points that a training gets which is not fed by a complete store; none where others say it."""
    if isinstance(job, ShuffleSpec) or job.feed == "stored" or not isinstance(job.store, str):
        return set()
    sources = [each for each in jobs if isinstance(each, CollectSpec) and each.output == job.store]
    if job.feed == "live":
        return {hook for source in sources for hook in source.hook_points}
    return set() if sources else set(Store.open(job.store, allow_partial=True).hook_points)


def _unknown(wanted: str, point: str, store: str, known: set[str]) -> str:
    return (
        f"{wanted} {point!r}, which {store} does not have and no earlier job collects{nearest(point, known)} "
        f"(known: {sorted(known)})"
    )


def _known_points(store: str | Mapping[str, str], collected: Mapping[str, set[str]]) -> set[str]:
    """Hook points that the store has or will have; ``NAME/HOOK`` of several stores."""
    if not isinstance(store, str):
        return {f"{name}/{hook}" for name, url in store.items() for hook in _known_points(url, collected)}
    if store in collected:
        return collected[store]
    try:
        return set(Store.open(store).hook_points)
    except MissingError:
        if (members := group_urls(store)) is None:
            raise
    return {f"{name}/{hook}" for name, url in members.items() for hook in _stored(url)}


def _stored(url: str) -> set[str]:
    try:
        return set(Store.open(url).hook_points)
    except (MissingError, DataError):
        return set()


@dataclass
class _Run:
    """A job while it runs, and what is known of its parts."""

    job: AnyJob
    earlier: dict[str, Any]
    """The summary that an earlier run left, empty without one."""
    results: dict[str, tuple[Job, dict[str, Any]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started = time.perf_counter()
        folder, name = summary_place(self.job)
        self.events = EventLog(folder, events_name(name), job=self.job.name)

    def add(self, stage: Stage, cluster: Cluster, progress: Progress) -> None:
        """Run the jobs of a stage and keep their results."""
        if stage.fed:
            run_stage(stage, cluster, progress, self._recorded)
        else:
            work = partial(_execute, stage.first, progress, is_shared=cluster.is_shared)
            self._recorded(stage.first, work)
        for job in stage.jobs:
            # In the order of the pipeline, whichever ended first.
            self.results[job.name] = self.results.pop(job.name)

    def _recorded(self, job: Job, work: Callable[[], dict[str, Any]]) -> None:
        """Do the work of a job and keep its result; in whatever thread."""
        begun = time.perf_counter()
        facts = {"part": job.name, "kind": job.kind, "output": job.output}
        self.events.emit("job.started", **facts)
        status, error = "failed", {}
        try:
            figures = work()
            status = "succeeded"
        except KeyboardInterrupt:
            status = "stopped"
            raise
        except Exception as raised:
            error = described(raised)
            raise
        finally:
            seconds = round(time.perf_counter() - begun, 3)
            self.events.emit("job.ended", **facts, status=status, seconds=seconds, **error)
            self.events.flush()
            metrics.JOBS.add(1, job_name=job.name, kind=job.kind, status=status)
        if isinstance(job, CollectSpec):
            figures = with_earlier_rates(figures, self.earlier.get("collection", {}))
        self.results[job.name] = job, figures
        self.seconds[job.name] = seconds

    def write(self, status: str, error: str = "") -> dict[str, Any]:
        """Write ``summary.json`` and return it."""
        seconds = {**self.seconds, "total": round(time.perf_counter() - self._started, 3)}
        summary = summarised(self.job, self.results, seconds) | {"status": status, "error": error}
        folder, name = summary_place(self.job)
        Objects(folder).write(name, (json.dumps(summary, indent=1) + "\n").encode())
        return summary


def with_earlier_rates(figures: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """A collection that found everything there has no rate of its own: it keeps that of the run which computed it."""
    if figures.get("reused") and figures.get("fingerprint") == earlier.get("fingerprint"):
        return figures | {name: value for name, value in earlier.items() if name.endswith("_per_s")}
    return figures


def _earlier(job: AnyJob) -> dict[str, Any]:
    folder, name = summary_place(job)
    objects = Objects(folder)
    if not objects.exists(name):
        return {}
    found: dict[str, Any] = json.loads(objects.read(name))
    return found


def _execute(job: Job, progress: Progress, *, is_shared: bool) -> dict[str, Any]:
    match job:
        case CollectSpec():
            return _by_units(job, run_snapshots if job.is_group else run_collect, progress, is_shared=is_shared)
        case ShuffleSpec():
            return _by_units(job, run_shuffle, progress, is_shared=is_shared)
        case TrainModelSpec() | TrainSpec():
            return _train(job, progress)
        case EvaluateSpec():
            from workers.evaluate import run_evaluate

            return run_evaluate(job, progress=progress)
        case InterpretSpec():
            from workers.evaluate import run_interpret

            return run_interpret(job, progress=progress)
        case CircuitSpec():
            from workers.circuit import run_circuit

            return run_circuit(job, progress=progress)


def _train(job: TrainModelSpec | TrainSpec, progress: Progress) -> dict[str, Any]:
    # Ray Train and Ray Data, a second that a collection need not wait.
    from workers.train import run_train
    from workers.train_model import run_train_model

    return run_train(job, progress=progress) if isinstance(job, TrainSpec) else run_train_model(job, progress=progress)


def _by_units(
    job: CollectSpec | ShuffleSpec, run: Callable[..., dict[str, Any]], progress: Progress, *, is_shared: bool
) -> dict[str, Any]:
    """Here, or in the cluster where that outlives this process."""
    if is_shared:
        return run_detached(job, partial(run, job), progress)
    return run(job, progress=progress)


def summarised(
    job: AnyJob, results: dict[str, tuple[Job, dict[str, Any]]], seconds: dict[str, float]
) -> dict[str, Any]:
    """What ``summary.json`` says.

    ``collection``: figures of the collect job, of the first if there are several. ``shuffles``: job name -> figures of
    each shuffle. ``models``: job name -> figures of the last step of each model that was trained.
    ``dictionaries``: name -> figures of the evaluation, ``interpretation``, mean scores, and ``training``, those of the
    last step; a name that two train jobs use is given as JOB/NAME.
    ``circuits``: job name -> edges and nodes over all tasks, and which tasks reached the target.
    ``jobs``: job name -> kind, output, whether it was reused, and the seconds that it has waited for another.
    ``seconds``: job name -> wall time, and ``total``, which is less than their sum where jobs ran side by side.
    """
    collections = [figures for each, figures in results.values() if isinstance(each, CollectSpec)]
    return {
        "format": 1,
        "name": job.name,
        "kind": job.kind,
        "output": job.output,
        "collection": collections[0] if collections else {},
        "shuffles": {name: figures for name, (each, figures) in results.items() if isinstance(each, ShuffleSpec)},
        "models": {
            name: {key: figures[key] for key in _OF_A_MODEL if key in figures}
            for name, (each, figures) in results.items()
            if isinstance(each, TrainModelSpec)
        },
        "dictionaries": _dictionaries(results),
        "circuits": {
            name: figures["summary"] for name, (each, figures) in results.items() if isinstance(each, CircuitSpec)
        },
        "seconds": seconds,
        "jobs": {
            name: {"kind": each.kind, "output": each.output, "reused": bool(figures.get("reused", False))}
            | {key: round(figures[key], 3) for key in ("stalled_seconds",) if key in figures}
            for name, (each, figures) in results.items()
        },
        "versions": versions(),
    }


def _said(job: Job, values: dict[str, Any]) -> dict[str, Any]:
    """What the summary has of a job's figures of one dictionary; explanations stay in the job's own output."""
    if isinstance(job, TrainSpec):
        return {"training": values}
    if isinstance(job, InterpretSpec):
        return {"interpretation": {name: value for name, value in values.items() if name != "latents"}}
    return values


def _dictionaries(results: dict[str, tuple[Job, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    trained = {each.output: each for each, _ in results.values() if isinstance(each, TrainSpec)}
    names = [spec.name for each in trained.values() for spec in each.dictionaries]
    found: dict[str, dict[str, Any]] = {}
    for each, figures in results.values():
        if isinstance(each, TrainModelSpec | CollectSpec | ShuffleSpec | CircuitSpec):
            continue
        owner = each if isinstance(each, TrainSpec) else trained.get(each.dictionaries)
        for name, values in figures["dictionaries"].items():
            key = f"{owner.name}/{name}" if owner and names.count(name) > 1 else name
            found.setdefault(key, {}).update(_said(each, values))
    return found
