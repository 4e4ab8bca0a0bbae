"""What a plan says of trainings that run while their store is collected, or without one."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.order.live import blocks_ahead
from pipeline.planning import money
from pipeline.planning.collection import PlannedStore
from pipeline.planning.sizes import row_bytes
from schemas.pipeline import AnyJob
from schemas.plan import Count, JobPlan, Prices, TrainPlan
from schemas.train import TrainSpec

NOTHING = Count(value=0, basis="exact")


def with_feeds(
    jobs: Sequence[AnyJob], plans: Sequence[JobPlan], stores: dict[str, PlannedStore], prices: Prices
) -> list[JobPlan]:
    """The plans, of which those that feed ``live`` changes are replaced. ``stores``: URL -> store that will be made."""
    found = {one.name: one for one in plans}
    for job in jobs:
        if not isinstance(job, TrainSpec) or job.feed not in ("live", "tee") or not isinstance(job.store, str):
            continue
        store = stores.get(job.store.rstrip("/"))
        training = found[job.name]
        if store is None or training.train is None:
            continue
        found[job.name] = training.model_copy(update={"train": _handed(job, training.train, store)})
        if job.feed == "live":
            for one in plans:
                if one.store is not None and one.output.rstrip("/") == job.store.rstrip("/"):
                    found[one.name] = _unstored(one, job.name, prices)
    return [found[one.name] for one in plans]


def _handed(job: TrainSpec, plan: TrainPlan, store: PlannedStore) -> TrainPlan:
    """Rows come from memory: all of feed ``live``, the first epoch at best of ``tee``."""
    storage = store.storage
    units = blocks_ahead(job, chunk_rows=storage.chunk_rows, shard_rows=storage.shard_rows, num_workers=1)
    block = storage.shard_rows * sum(row_bytes(storage, width) for width in store.hook_points.values())
    changes: dict[str, int] = {"block_bytes": units * block}
    if job.feed == "live":
        changes |= {"read_bytes": 0, "gets": 0}
    return plan.model_copy(update=changes)


def _unstored(one: JobPlan, training: str, prices: Prices) -> JobPlan:
    """The plan of a collection whose rows go to a training only: it computes all the same."""
    assert one.store is not None
    nothing = {"size_bytes": NOTHING, "total_bytes": NOTHING, "objects": 0, "puts": 0, "gets": 0, "lists": 0}
    sizes: dict[str, dict[str, int]] = {"bytes_per_hook_point": {}, "object_bytes": {}}
    return one.model_copy(
        update={
            "store": one.store.model_copy(update=nothing | sizes),
            "money": money.computing(prices, one.time.device_hours) if one.time is not None else None,
            "reuse": None,
            "notes": [*one.notes, f"no store is written: its rows are handed to {training}"],
        }
    )
