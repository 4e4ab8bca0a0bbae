"""Circuits on Ray: a task for each search, side by side as far as the cluster has cores or GPUs.

A search that is complete has its file, so a job that was stopped goes on with those that are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import ray

from pipeline.circuits.job import Search, conclude, finished, identity, run_search, searches
from pipeline.store.retention import noted_use
from schemas.circuit import CircuitSpec
from schemas.errors import ResourceError
from workers import board
from workers.answers import answer_of
from workers.cluster import Cluster
from workers.progress import Progress

POLL_S = 0.5


def run_circuit(spec: CircuitSpec, *, progress: Progress) -> dict[str, Any]:
    """All searches on the connected Ray; what ``circuits.json`` says, and whether nothing was left to compute.

    Paths in the spec are absolute or URLs.

    Raises:
        HeadworksError: what a search raised.
        JobError: the process of a search died twice.
    """
    prepare = ray.remote(num_cpus=1, max_retries=1)(_prepare)
    with noted_use([spec.store], spec.name) if spec.store else nullcontext():
        facts, results = _answer(prepare.remote(spec.model_dump(mode="json")), spec.name)
        waiting = [search for search in searches(spec) if search.key not in results]
        results |= _searched(spec, facts, waiting, progress)
        ordered = [results[search.key] for search in searches(spec)]
        end = ray.remote(num_cpus=1, max_retries=1)(_conclude)
        figures: dict[str, Any] = _answer(end.remote(spec.model_dump(mode="json"), facts, ordered), spec.name)
    return {**figures, "reused": not waiting}


def require_room(spec: CircuitSpec, cluster: Cluster) -> None:
    """Refuse searches that a cluster of fixed size can never hold, which would wait for ever.

    Raises:
        ResourceError: one search asks for more cores or GPUs than there are.
    """
    ask = spec.workers
    for what, field, wanted, there in (
        ("CPU cores", "cpus_per_search", ask.cpus_per_search, cluster.num_cpus),
        ("GPUs", "gpus_per_search", ask.gpus_per_search, cluster.num_gpus),
    ):
        if wanted > there:
            raise ResourceError(
                f"{spec.name}: a search needs {wanted:g} {what}, this machine has {there:g}; lower workers.{field}"
            )


def _searched(
    spec: CircuitSpec, facts: dict[str, Any], waiting: Sequence[Search], progress: Progress
) -> dict[str, dict[str, Any]]:
    """Key -> result of every search that was missing."""
    ask, dumped, notices = spec.workers, spec.model_dump(mode="json"), board.open_board()
    run = ray.remote(num_cpus=ask.cpus_per_search, num_gpus=ask.gpus_per_search, max_retries=1)(_search)
    left, running = list(waiting), dict[Any, Search]()
    results: dict[str, dict[str, Any]] = {}
    steps: dict[str, int] = {}
    try:
        with progress.task(f"{spec.name}: {len(waiting)} searches", unit="steps") as shown:
            while left or running:
                while left and (len(running) < ask.num_workers or not ask.num_workers):
                    search = left.pop(0)
                    running[run.remote(dumped, facts, search.task, search.number, notices)] = search
                done, _ = ray.wait(list(running), timeout=POLL_S)
                for reference in done:
                    results[running[reference].key] = _answer(reference, spec.name)
                    del running[reference]
                # The board keeps the last record, of whichever search: each is a few steps behind at most.
                if record := board.read(notices):
                    steps[record["key"]] = record["done"]
                under_way = sum(steps.get(search.key, 0) for search in running.values())
                shown.reach(len(results) * spec.mask.steps + under_way, len(waiting) * spec.mask.steps)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
    return results


def _answer(reference: Any, name: str) -> Any:
    advice = "It was most often killed for its memory: lower mask.batch_pairs or task.pairs."
    return answer_of(reference, name, advice=advice)


def _prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Facts of the job, and the results that earlier runs left."""
    job = CircuitSpec.model_validate(spec)
    facts = identity(job)
    left = {search.key: finished(job, facts, search) for search in searches(job)}
    return facts, {key: found for key, found in left.items() if found is not None}


def _search(spec: dict[str, Any], facts: dict[str, Any], task: str, number: int, notices: Any) -> dict[str, Any]:
    import torch

    job, search = CircuitSpec.model_validate(spec), Search(task, number)
    torch.set_num_threads(max(1, int(job.workers.cpus_per_search)))
    post = board.poster(notices)

    def told(done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            post({"key": search.key, "done": done})

    return run_search(job, facts, search, told)


def _conclude(spec: dict[str, Any], facts: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    return conclude(CircuitSpec.model_validate(spec), facts, results)
