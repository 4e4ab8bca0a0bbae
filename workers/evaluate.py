"""Evaluation and interpretation on Ray: one task with a node to itself, so that the driver needs neither the model nor
the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from pipeline.store.joined import store_urls
from pipeline.store.retention import noted_use
from schemas.evaluate import EvaluateSpec
from schemas.interpret import InterpretSpec
from workers import board
from workers.answers import answer_of
from workers.progress import Progress

POLL_S = 0.5


def run_evaluate(spec: EvaluateSpec, *, progress: Progress) -> dict[str, Any]:
    """``pipeline.evaluation.evaluate.evaluate`` on the connected Ray; its figures.

    Paths in the spec are absolute or URLs.

    Raises:
        HeadworksError: what the evaluation raised.
        JobError: its process died twice.
    """
    return _run_alone(_evaluate, spec, progress, remedy="lower max_rows or report.rows")


def run_interpret(spec: InterpretSpec, *, progress: Progress) -> dict[str, Any]:
    """``pipeline.interpretation.interpret.interpret``, in the same way."""
    return _run_alone(_interpret, spec, progress, remedy="lower rows or num_latents")


def _run_alone(
    function: Callable[..., dict[str, Any]], spec: EvaluateSpec | InterpretSpec, progress: Progress, *, remedy: str
) -> dict[str, Any]:
    notices = board.open_board()
    num_cpus, num_gpus = _largest_node()
    task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=1)(function)
    reference = task.remote(spec.model_dump(mode="json"), notices, max(1, int(num_cpus)))
    try:
        with noted_use(store_urls(spec.store), spec.name):
            _watch(reference, notices, spec.name, progress)
        advice = f"It was most often killed for its memory: {remedy}."
        figures: dict[str, Any] = answer_of(reference, spec.name, advice=advice)
        # It says how far it is as soon as it computes.
        figures = {**figures, "reused": not board.read(notices)}
    finally:
        ray.cancel(reference, force=True)
    return figures


def _largest_node() -> tuple[float, float]:
    """``(cores, 1 if it has a GPU)`` of the node with most GPUs, then cores."""
    nodes: Any = ray.nodes
    resources = [node["Resources"] for node in nodes() if node["Alive"]]
    num_gpus, num_cpus = max((node.get("GPU", 0.0), node.get("CPU", 0.0)) for node in resources)
    return num_cpus, min(num_gpus, 1.0)


def _evaluate(spec: dict[str, Any], notices: Any, num_threads: int) -> dict[str, Any]:
    import torch

    from pipeline.evaluation.evaluate import evaluate

    torch.set_num_threads(num_threads)
    return evaluate(EvaluateSpec.model_validate(spec), progress=board.poster(notices))


def _interpret(spec: dict[str, Any], notices: Any, num_threads: int) -> dict[str, Any]:
    import torch

    from pipeline.interpretation.interpret import interpret

    torch.set_num_threads(num_threads)
    return interpret(InterpretSpec.model_validate(spec), progress=board.poster(notices))


def _watch(reference: Any, notices: Any, name: str, progress: Progress) -> None:
    """Show stage after stage until the task ends."""
    stage, ended = "", False
    while not ended:
        unit = "latents" if stage.startswith(("explaining", "scoring")) else "rows"
        with progress.task(f"{name}: {stage}" if stage else name, unit=unit) as shown:
            while not ended:
                ended = bool(ray.wait([reference], timeout=POLL_S)[0])
                record = board.read(notices)
                if record.get("stage", stage) != stage:
                    if stage in record["finished"]:
                        shown.reach(record["finished"][stage], record["finished"][stage])
                    stage = record["stage"]
                    break
                if record:
                    shown.reach(record["done"], record["total"])
                else:
                    shown.tick()
