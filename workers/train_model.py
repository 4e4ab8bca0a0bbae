"""Training of models on Ray: tokenizer and token table by tasks, the steps by a worker group, see ``rank_group``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import ray.train
import ray.train.torch

from pipeline.pretraining.prepare import Prepared, finished, prepare, run_id
from schemas.train_model import TrainModelSpec
from workers import board
from workers.progress import Progress
from workers.rank_group import RankGroup, run_ranks
from workers.tokenise import map_parts
from workers.training_metrics import ModelMetrics


def run_train_model(spec: TrainModelSpec, *, progress: Progress) -> dict[str, Any]:
    """Train on the connected Ray; the summary of ``pipeline.pretraining.engine.pretrain``, ``restarts`` and
    ``num_ranks``. A finished output is returned as it is, with 0 of both.

    The output is absolute, and a folder that all ranks see.

    Raises:
        HeadworksError: what preparing or a rank raised.
        JobError: the group failed more than ``workers.max_failures`` times.
    """
    with progress.task(f"{spec.name}: tokens", total=spec.tokens.max_tokens) as task:
        prepared = prepare(spec, map_parts=map_parts, progress=task.reach)
    if (summary := finished(spec)) is not None:
        progress.note(f"{spec.name}: {spec.output} is trained already, reused")
        return {**summary, "restarts": 0, "num_ranks": 0}
    config = {"spec": spec.model_dump(mode="json"), "prepared": asdict(prepared)}
    advice = "lower forward_tokens or batch_tokens"
    return run_ranks(group_of(spec, run_id(spec)), _rank_loop, config, progress, advice=advice)


def group_of(spec: TrainModelSpec, run_id: str = "") -> RankGroup:
    """What the job asks of the cluster."""
    workers = spec.workers
    return RankGroup(
        job=spec.name, output=spec.output, run_id=run_id, num_workers=workers.num_workers,
        cpus_per_worker=workers.cpus_per_worker, use_gpu=workers.use_gpu, max_failures=workers.max_failures,
    )  # fmt: skip


def _rank_loop(config: dict[str, Any]) -> dict[str, Any] | None:
    """What a rank runs. Only rank 0 returns the summary."""
    import torch

    from pipeline.pretraining.engine import pretrain
    from pipeline.training.world import torch_world

    spec = TrainModelSpec.model_validate(config["spec"])
    torch.set_num_threads(max(1, int(spec.workers.cpus_per_worker)))
    world = torch_world()
    post, gauges = board.poster(config["board"]), ModelMetrics(spec.name)

    def report(record: dict[str, Any]) -> None:
        post(record)
        gauges.record(record)

    summary = pretrain(
        spec,
        Prepared(**config["prepared"]),
        world,
        report=report if world.rank == 0 else None,
        device=ray.train.torch.get_device(),
    )
    return {**summary, "num_ranks": world.size} if world.rank == 0 else None
