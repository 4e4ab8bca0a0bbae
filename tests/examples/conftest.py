"""What tests of several examples do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.collection.prepare import prepare
from pipeline.collection.snapshots import group_of, require_snapshots, snapshot_jobs
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.store.group import join_group
from pipeline.store.objects import Objects
from pipeline.tokens.table import build_table
from schemas.collect import CollectSpec


@pytest.fixture(scope="session")
def collect_here() -> Callable[[CollectSpec], None]:
    """Collects snapshots as ``workers.snapshots`` does, without Ray."""

    def collect(spec: CollectSpec) -> None:
        jobs = snapshot_jobs(spec)
        require_snapshots(spec, jobs)
        table = build_table(spec.tokens, spec.model, url=spec.tokens.output, shard_rows=spec.storage.shard_rows)
        join_group(Objects(spec.output), group_of(spec, jobs, table.fingerprint))
        for job in jobs.values():
            for one in prepare(job, table):
                collector = UnitCollector.open(one.of)
                list(collect_units(collector, one.units))
                collector.writer.finish()

    return collect
