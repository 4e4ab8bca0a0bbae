"""A collect job over several snapshots: one token table, one collection after the other, one store group.

Every snapshot is loaded once by each worker of its own collection. A snapshot that was finished before computes
nothing, so a job that a snapshot was added to, or that was killed, goes on with what is left.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from pipeline.collection.prepare import store_events, store_record
from pipeline.collection.snapshots import group_of, require_snapshots, snapshot_jobs
from pipeline.store.group import join_group
from pipeline.store.objects import Objects
from schemas.collect import CollectSpec
from schemas.fingerprint import fingerprint
from workers.collect import collect_table, run_collect
from workers.collector import Collector
from workers.progress import Progress

_log = logging.getLogger(__name__)

_SUMS = ("tokens_computed", "bytes", "units", "units_reused", "retries", "worker_deaths")


def run_snapshots(
    spec: CollectSpec, *, progress: Progress | None = None, actor_class: type[Collector] = Collector
) -> dict[str, Any]:
    """Collect what is missing of the group that ``spec`` describes. Ray must be connected; returns the summary.

    The summary is that of ``run_collect``, summed over the snapshots, and ``snapshots``: name -> its own.

    Raises:
        UserError: what the user must mend, of whichever snapshot, before any is collected where it can be known.
        JobError: a unit failed too often; the snapshots before it are kept.
    """
    started = time.perf_counter()
    progress = progress or Progress()
    jobs = snapshot_jobs(spec)
    require_snapshots(spec, jobs)
    table = collect_table(spec, progress)
    tokenised = time.perf_counter()
    for job in jobs.values():
        store_events(Objects(job.output), store_record(job, table))
    group = group_of(spec, jobs, table.fingerprint)
    join_group(Objects(spec.output), group)
    found: dict[str, dict[str, Any]] = {}
    for number, (name, job) in enumerate(jobs.items(), start=1):
        progress.note(f"{spec.name}: snapshot {name} ({number} of {len(jobs)}): {job.model.path}")
        found[name] = run_collect(job, progress=progress, actor_class=actor_class, table=table)
        _log.info("collect.snapshot group=%s name=%s reused=%s", spec.output, name, found[name]["reused"])
    join_group(Objects(spec.output), group)
    return _summed(found) | {
        "seconds": time.perf_counter() - started,
        "seconds_by_stage": _stages(found) | {"tokenise": tokenised - started},
        "table_fingerprint": table.fingerprint,
        "snapshots": {
            name: figures | {"output": jobs[name].output, "step": member.step}
            for (name, figures), member in zip(found.items(), group.members, strict=True)
        },
    }


def _summed(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    seconds = sum(one["seconds_by_stage"]["collect"] for one in found.values())
    sums = {key: sum(one[key] for one in found.values()) for key in _SUMS}
    written = sum(one["bytes_per_s"] * one["seconds_by_stage"]["collect"] for one in found.values())
    return {
        "tokens": min(one["tokens"] for one in found.values()),
        **sums,
        "tokens_per_s": sums["tokens_computed"] / seconds if seconds else 0.0,
        "bytes_per_s": written / seconds if seconds else 0.0,
        "reused": all(one["reused"] for one in found.values()),
        "hook_points": {
            f"{name}/{hook}": width for name, one in found.items() for hook, width in one["hook_points"].items()
        },
        "fingerprint": fingerprint({name: one["fingerprint"] for name, one in found.items()}),
    }


def _stages(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    names = {stage for one in found.values() for stage in one["seconds_by_stage"]}
    return {stage: sum(one["seconds_by_stage"].get(stage, 0.0) for one in found.values()) for stage in sorted(names)}
