"""The plan of a shuffle as pure arithmetic: every row reaches its bucket through every pass, within the memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shuffling.plan import ShufflePlan, plan_shuffle
from schemas.errors import ResourceError

plans = st.builds(
    ShufflePlan,
    num_rows=st.integers(1, 800),
    shard_rows=st.integers(2, 60),
    bucket_units=st.integers(1, 3),
    slab_rows=st.integers(5, 200),
    fan_out=st.integers(2, 9),
)


@settings(deadline=None, max_examples=60)
@given(plan=plans)
def test_slabs_and_buckets_cut_the_rows(plan: ShufflePlan) -> None:
    tasks = range(plan.num_tasks(1)) if plan.num_scatters else range(0)
    slabs = [range(*plan.slab(task)) for task in tasks]
    assert [row for slab in slabs for row in slab] == [*range(plan.num_rows if tasks else 0)]
    buckets = [range(*plan.positions(bucket)) for bucket in range(plan.num_buckets)]
    assert [row for bucket in buckets for row in bucket] == [*range(plan.num_rows)]
    units = [unit for bucket in range(plan.num_buckets) for unit in plan.units(bucket)]
    assert units == [*range(-(-plan.num_rows // plan.shard_rows))]


@settings(deadline=None, max_examples=60)
@given(plan=plans, seed=st.integers(0, 99))
def test_every_row_goes_through_one_run_of_every_pass_to_its_bucket(plan: ShufflePlan, seed: int) -> None:
    """Carry out the plan on bare row numbers: what a task reads and writes, as sets."""
    position = np.random.default_rng(seed).permutation(plan.num_rows)
    runs: dict[tuple[int, int], list[np.ndarray]] = {}
    for level in range(1, plan.num_scatters + 1):
        for task in range(plan.num_tasks(level)):
            node = plan.node_of(level, task)
            if level == 1:
                rows = np.arange(*plan.slab(task))
            else:
                section = plan.section_of(node)
                rows = np.concatenate([runs[level - 1, one][section] for one in plan.inputs(level, task)])
            children = plan.children(level - 1, node)
            child = position[rows] // plan.node_rows(level)
            assert not len(rows) or children[0] <= child.min() <= child.max() <= children[-1]
            assert len(children) <= plan.fan_out
            assert [plan.section_of(one) for one in children] == [*range(len(children))]
            runs[level, task] = [rows[child == one] for one in children]
    seen = []
    for bucket in range(plan.num_buckets):
        start, stop = plan.positions(bucket)
        if plan.num_scatters:
            section, tasks = plan.section_of(bucket), plan.inputs_of_bucket(bucket)
            rows = np.concatenate([runs[plan.num_scatters, task][section] for task in tasks])
        else:
            rows = np.arange(plan.num_rows)
        assert np.array_equal(np.sort(position[rows]), np.arange(start, stop))
        seen.append(rows)
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(plan.num_rows))


@settings(deadline=None)
@given(
    num_rows=st.integers(1, 10**12),
    row_bytes=st.integers(30, 10**6),
    shard_rows=st.integers(1, 10**5),
    memory=st.integers(2**20, 2**38),
)
def test_tasks_keep_within_the_memory(num_rows: int, row_bytes: int, shard_rows: int, memory: int) -> None:
    try:
        plan = plan_shuffle(num_rows, row_bytes, shard_rows, memory)
    except ResourceError:
        assert 2 * min(shard_rows, num_rows) * row_bytes > memory
        return
    # One unit beyond half the memory is possible only where the unit itself is the whole store.
    assert min(plan.bucket_rows, num_rows) * row_bytes <= memory / 2
    assert plan.slab_rows == 1 or plan.slab_rows * row_bytes <= memory / 3
    assert plan.fan_out == 2 or plan.slab_rows * row_bytes / plan.fan_out >= 2**20


@pytest.mark.parametrize(
    ("size", "memory", "passes"),
    [(400 * 2**20, 2**30, 1), (100 * 2**30, 2**30, 2), (20 * 2**40, 2**30, 3), (100 * 2**40, 100 * 2**30, 2)],
)
def test_few_passes_are_enough(size: int, memory: int, passes: int) -> None:
    row_bytes = 1200
    assert plan_shuffle(size // row_bytes, row_bytes, 32768, memory).num_passes == passes


def test_a_memory_too_small_for_one_unit_is_refused_with_the_right_one() -> None:
    with pytest.raises(ResourceError, match=r"2 MiB, but a unit of 32,768 rows of 1,000 bytes takes 62.5 MiB"):
        plan_shuffle(10**6, 1000, 32768, 2**21)
    plan_shuffle(10**6, 1000, 32768, 2 * 32768 * 1000)
