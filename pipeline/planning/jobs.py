"""The plan of a job, or of each job of a pipeline and the sum: refuses what does not fit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from pipeline.planning.collection import PlannedStore, plan_collection
from pipeline.planning.sizes import LEAST_SHARE
from pipeline.planning.space import disk_of, require_quota
from pipeline.planning.training import plan_training
from pipeline.spec_errors import explained
from pipeline.spec_file import parse_yaml
from pipeline.spec_paths import anchored
from pipeline.store.objects import Objects
from schemas.collect import CollectSpec
from schemas.errors import MissingError, ResourceError, SpecError
from schemas.fields import about_bytes
from schemas.pipeline import AnyJob, PipelineSpec
from schemas.plan import JobPlan, Plan, PlanAssumptions
from schemas.shuffle import ShuffleSpec
from schemas.train import TrainSpec


def plan(job: AnyJob, assumptions: PlanAssumptions, *, measured: bool = False) -> Plan:
    """Plan without writing anything. Relative paths mean the current directory, as when the job runs.

    Raises:
        ResourceError: what is to be written does not fit on a local disk or into a quota, or dictionaries into memory.
        HeadworksError: what the job itself would refuse before it computes.
    """
    job = anchored(job, Path.cwd())
    jobs = job.resolved() if isinstance(job, PipelineSpec) else [job]
    stores: dict[str, PlannedStore] = {}
    plans: list[JobPlan] = []
    for each in jobs:
        if isinstance(each, CollectSpec):
            one, store = plan_collection(each, assumptions, measured=measured)
            stores[each.output.rstrip("/")] = store
        elif isinstance(each, TrainSpec):
            one = plan_training(each, stores, assumptions)
        else:
            one = JobPlan(name=each.name, kind=each.kind, output=each.output, notes=["not planned"])
            if isinstance(each, ShuffleSpec) and (source := stores.get(each.store.rstrip("/"))) is not None:
                stores[each.output.rstrip("/")] = source
        plans.append(one)
    _require_room([each for each in jobs if isinstance(each, CollectSpec)], plans)
    return _summed(plans, assumptions)


def read_assumptions(path: str | os.PathLike[str]) -> PlanAssumptions:
    """The YAML file of ``--prices``.

    Raises:
        MissingError: there is none. SpecError: naming every wrong field.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingError(f"no prices at {path}: {error}") from error
    try:
        return PlanAssumptions.model_validate(parse_yaml(text, where=str(path)) or {})
    except ValidationError as error:
        raise SpecError(f"{path}: " + "; ".join(explained(error, PlanAssumptions))) from error


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
