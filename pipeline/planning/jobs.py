"""The plan of a job, or of each job of a pipeline and the sum: refuses what does not fit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline.collection.snapshots import require_snapshots, snapshot_jobs
from pipeline.planning.circuits import plan_circuits
from pipeline.planning.collection import PlannedStore, plan_collection
from pipeline.planning.live import with_feeds
from pipeline.planning.pretraining import is_trained, plan_pretraining, stand_in
from pipeline.planning.sizes import LEAST_SHARE
from pipeline.planning.space import disk_of, require_quota
from pipeline.planning.stages import stages
from pipeline.planning.table import PlannedTable, planned_table
from pipeline.planning.training import plan_training
from pipeline.spec_file import read_yaml
from pipeline.spec_paths import anchored
from pipeline.store import layout
from pipeline.store.joined import group_urls
from pipeline.store.objects import Objects
from pipeline.training.points import points_of
from schemas.circuit import CircuitSpec
from schemas.collect import CollectSpec
from schemas.errors import ResourceError
from schemas.fields import about_bytes
from schemas.pipeline import AnyJob, PipelineSpec, Single
from schemas.plan import JobPlan, Plan, PlanAssumptions
from schemas.reach import Reached, put, reached
from schemas.shuffle import ShuffleSpec
from schemas.train import TrainSpec
from schemas.train_model import TrainModelSpec


def plan(job: AnyJob, assumptions: PlanAssumptions, *, measured: bool = False, runs_here: bool = True) -> Plan:
    """Plan without writing anything. Relative paths mean the current directory, as when the job runs. ``runs_here``
    false: the local disks are those of other machines, so that their room says nothing.

    Raises:
        ResourceError: what is to be written does not fit on a local disk or into a quota, or dictionaries into memory.
        HeadworksError: what the job itself would refuse before it computes.
    """
    job = anchored(job, Path.cwd())
    jobs = job.resolved() if isinstance(job, PipelineSpec) else [job]
    stages(jobs)  # refuses feeds that cannot be
    with ExitStack() as until_planned:
        found = _planned(_with_stand_ins(jobs, until_planned), assumptions, measured=measured, runs_here=runs_here)
    return _summed(found, assumptions)


def _with_stand_ins(jobs: Sequence[Single], until_planned: ExitStack) -> list[Single]:
    """The same jobs, where they take models that are yet to be trained with folders that look like those."""
    found: list[Single] = [*jobs]
    for training in jobs:
        if not isinstance(training, TrainModelSpec) or is_trained(training):
            continue
        if any(_takes(job, training) for job in found):
            folder = str(until_planned.enter_context(stand_in(training)))
            found = [_moved(job, training.output, folder) for job in found]
    return found


def _takes(job: Single, training: TrainModelSpec) -> bool:
    return isinstance(job, CollectSpec | CircuitSpec) and any(_is_of(each, training.output) for each in reached(job))


def _is_of(each: Reached, output: str) -> bool:
    return each.what in ("model", "tokenizer") and str(each.value).startswith(f"{output.rstrip('/')}/")


def _moved(job: Single, output: str, folder: str) -> Single:
    """A collect or circuit job with ``folder`` in place of all models and tokenizers below ``output``."""
    if not isinstance(job, CollectSpec | CircuitSpec):
        return job
    facts = job.model_dump(mode="json")
    for each in reached(job):
        if _is_of(each, output):
            put(facts, each.steps, folder)
    return type(job).model_validate(facts)


def _planned(jobs: Sequence[Single], assumptions: PlanAssumptions, *, measured: bool, runs_here: bool) -> list[JobPlan]:
    """A plan for each job, of several snapshots for each of them."""
    stores: dict[str, PlannedStore] = {}
    groups: dict[str, dict[str, str]] = {}
    collections: list[CollectSpec] = []
    plans: list[JobPlan] = []
    for each in jobs:
        if isinstance(each, CollectSpec):
            singles, table = _singles(each, groups)
            for single in singles:
                one, store = plan_collection(single, assumptions, measured=measured, table=table)
                stores[single.output.rstrip("/")] = store
                collections.append(single)
                plans.append(one)
            continue
        if isinstance(each, TrainModelSpec):
            one = plan_pretraining(each, assumptions)
        elif isinstance(each, TrainSpec):
            one = plan_training(_of_members(each, stores, groups), stores, assumptions)
        elif isinstance(each, CircuitSpec):
            one = plan_circuits(each, assumptions)
        else:
            one = JobPlan(name=each.name, kind=each.kind, output=each.output, notes=["not planned"])
            if isinstance(each, ShuffleSpec) and (source := stores.get(each.store.rstrip("/"))) is not None:
                stores[each.output.rstrip("/")] = source
        plans.append(one)
    plans = with_feeds(jobs, plans, stores, assumptions.prices)
    if runs_here:
        _require_room(collections, plans)
    return plans


def _singles(spec: CollectSpec, groups: dict[str, dict[str, str]]) -> tuple[list[CollectSpec], PlannedTable | None]:
    """The jobs over one model each and the table that they share, None of a job over one model; notes a group."""
    if not spec.is_group:
        return [spec], None
    members = snapshot_jobs(spec)
    require_snapshots(spec, members)
    groups[spec.output.rstrip("/")] = {name: one.output for name, one in members.items()}
    table = planned_table(spec, digested=any(_is_store(one.output) for one in members.values()))
    return [*members.values()], table


def _of_members(
    spec: TrainSpec, planned: Mapping[str, PlannedStore], groups: Mapping[str, dict[str, str]]
) -> TrainSpec:
    """The same job with the stores that it reads of a group, planned or there, in the group's place."""
    if not isinstance(spec.store, str) or spec.store.rstrip("/") in planned or _is_store(spec.store):
        return spec
    urls = groups.get(spec.store.rstrip("/")) or group_urls(spec.store)
    if not urls:
        return spec
    used = {point.partition("/")[0] for point in points_of(spec)}
    return spec.model_copy(update={"store": {name: url for name, url in urls.items() if name in used} or urls})


def _is_store(url: str) -> bool:
    return Objects(url).exists(layout.ROOT)


def read_assumptions(path: str | os.PathLike[str]) -> PlanAssumptions:
    """The YAML file of ``--prices``.

    Raises:
        MissingError: there is none. SpecError: naming every wrong field.
    """
    return read_yaml(path, PlanAssumptions, "prices")


def _require_room(jobs: Sequence[CollectSpec], plans: Sequence[JobPlan]) -> None:
    """Quotas one by one, then all that goes to one disk together."""
    wanted: dict[int, list[tuple[str, int, Path]]] = {}
    stores = {one.output: one.store for one in plans if one.store is not None}
    for job in jobs:
        store, objects = stores[job.output], Objects(job.output)
        needed = int(store.size_bytes.value * LEAST_SHARE[job.storage.codec])
        require_quota(objects, needed, job.retention.quota, f"{store.missing_rows.value:,} rows")
        if (disk := disk_of(objects)) is not None:
            wanted.setdefault(disk[0], []).append((job.name, needed, disk[1]))
    for held in wanted.values():
        free, needed = shutil.disk_usage(held[0][2]).free, sum(size for _, size, _ in held)
        if needed > free:
            parts = ", ".join(f"{name} {about_bytes(size)}" for name, size, _ in held)
            raise ResourceError(
                f"the disk of {held[0][2]} has {about_bytes(free)} free, the plan needs {about_bytes(needed)} there "
                f"({parts}). Lower tokens.max_tokens, take fewer hook points, or choose another output."
            )


def _summed(plans: list[JobPlan], assumptions: PlanAssumptions) -> Plan:
    stores = [one.store for one in plans if one.store is not None]
    hours = [one.time.hours if one.time is not None else None for one in plans if one.store is not None]
    known = [one.money for one in plans if one.money is not None]
    return Plan(
        jobs=plans,
        size_bytes=sum(store.size_bytes.value for store in stores),
        objects=sum(store.objects for store in stores),
        hours=None if None in hours else sum(hour for hour in hours if hour is not None),
        money=sum(known) if known else None,
        currency=assumptions.prices.currency,
    )
