"""How many machines, and what is in each."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from rendering_jobs import collect, evaluate, job_of, on_cpus_and_gpus, on_gpus, settings_of, train

from deploy.rendering.demand import Demand, demands_of
from deploy.rendering.nodes import RAY_BYTES, nodes_for, per_node
from schemas.errors import SpecError
from schemas.pipeline import AnyJob
from schemas.rendering import RenderSettings

GIB = 2**30


def nodes(job: AnyJob, *, alike: bool = False, **settings: object) -> list[tuple[str, int, int, int]]:
    known = settings_of(**settings)
    return [
        (one.kind, one.number, one.cpus, one.gpus) for one in nodes_for(job, demands_of(job, known), known, alike=alike)
    ]


def test_a_machine_holds_one_worker_unless_said_otherwise() -> None:
    assert nodes(job_of(collect())) == [("cpu", 4, 2, 0)]
    assert nodes(job_of(collect()), workers_per_node=4) == [("cpu", 1, 8, 0)]
    assert nodes(job_of(collect()), workers_per_node=3) == [("cpu", 2, 6, 0)]
    assert nodes(job_of(collect()), min_cpus=12) == [("cpu", 4, 12, 0)]


def test_the_largest_stage_decides_and_stages_follow_each_other() -> None:
    assert nodes(on_gpus(), workers_per_node=8) == [("gpu", 2, 48, 8)]
    assert nodes(on_gpus()) == [("gpu", 16, 6, 1)]


def test_a_training_that_is_fed_has_machines_beside_those_of_its_collection() -> None:
    job = job_of(collect(), train(store="${collect}", feed="follow"))
    assert nodes(job) == [("cpu", 12, 4, 0)]


def test_workers_that_share_a_gpu_are_together_and_those_without_are_elsewhere() -> None:
    assert nodes(on_cpus_and_gpus()) == [("gpu", 2, 4, 1), ("cpu", 8, 4, 0)]
    assert nodes(on_cpus_and_gpus(), alike=True) == [("gpu", 8, 4, 1)]


def test_a_tensor_parallel_replica_is_on_one_machine() -> None:
    workers = {"placement": "tensor", "processes_per_replica": 4, "gpus_per_worker": 1, "num_workers": 2}
    job = job_of(collect(workers=workers))
    assert nodes(job) == [("gpu", 2, 8, 4)]
    assert nodes(job, workers_per_node=8) == [("gpu", 1, 16, 8)]
    with pytest.raises(SpecError, match=r"workers_per_node is 6, but 4 processes"):
        nodes(job, workers_per_node=6)


def test_an_evaluation_keeps_a_machine() -> None:
    known = settings_of()
    assert [one.least for one in nodes_for(on_gpus(), demands_of(on_gpus(), known), known)] == [1]
    job = job_of(collect())
    assert [one.least for one in nodes_for(job, demands_of(job, known), known)] == [0]
    assert nodes(job_of(evaluate()), min_cpus=8) == [("cpu", 1, 8, 0)]


def test_a_job_that_takes_what_there_is_must_be_told_how_much_that_is() -> None:
    job = job_of(collect(workers={"num_workers": 0}))
    with pytest.raises(SpecError, match=r"collect: workers.num_workers is 0.*--nodes"):
        nodes(job)
    assert nodes(job, nodes=5, workers_per_node=2) == [("cpu", 5, 4, 0)]


def test_too_few_machines_are_refused_and_more_are_taken() -> None:
    with pytest.raises(SpecError, match="nodes is 3, but the workers of collect need 4"):
        nodes(job_of(collect()), nodes=3)
    assert nodes(job_of(collect()), nodes=6) == [("cpu", 6, 2, 0)]


def test_memory_is_that_of_the_workers_the_object_store_and_ray() -> None:
    known = settings_of(workers_per_node=2)
    job = job_of(collect(), evaluate(), cluster={"object_store_memory": "3GiB"})
    (found,) = nodes_for(job, demands_of(job, known), known)
    assert found.memory_bytes == 2 * 16 * GIB + 3 * GIB + RAY_BYTES
    assert found.object_store_bytes == 3 * GIB
    assert found.object_store_bytes < found.shm_bytes < found.memory_bytes


demands = st.builds(
    Demand,
    job=st.just("job"),
    number=st.integers(1, 40),
    cpus=st.floats(0.1, 16),
    gpus=st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0, 2.0]),
    together=st.integers(1, 8),
    memory_bytes=st.integers(0, 2**40),
    flush_bytes=st.integers(0, 2**40),
    block_bytes=st.integers(0, 2**36),
)


@settings(deadline=None)
@given(st.lists(st.lists(demands, min_size=1, max_size=3), min_size=1, max_size=3), st.booleans())
def test_there_is_room_for_every_stage(stages: list[list[Demand]], alike: bool) -> None:
    """Packed the worst way, each job on machines of its own, the processes of any stage find room."""
    known = RenderSettings()
    found = nodes_for(job_of(collect()), stages, known, alike=alike)
    for stage in stages:
        taken = {one.kind: 0 for one in found}
        for one in stage:
            kind = "gpu" if one.gpus and "gpu" in taken else "cpu"
            here = next((each for each in found if each.kind == kind), found[0])
            count = per_node(one, known)
            assert count >= one.together
            assert here.cpus >= one.cpus * count - 1e-6
            assert here.gpus >= one.gpus * count - 1e-6
            assert here.memory_bytes >= one.memory_bytes * count + here.object_store_bytes
            assert here.grace_s >= one.flush_bytes * count / known.write_rate
            assert here.object_store_bytes * here.number * 0.8 >= one.block_bytes * (1 - 1e-9)
            taken[here.kind] += math.ceil(one.number / count)
        for here in found:
            assert here.number >= taken[here.kind]
