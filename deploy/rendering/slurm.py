"""SLURM: a batch script that starts Ray on whole nodes, runs the job, and puts itself into the queue again in time."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.rendering.demand import demands_of
from deploy.rendering.nodes import Nodes, nodes_for
from deploy.rendering.settings import cluster_name
from deploy.rendering.templating import filled
from deploy.submission import JOB_FILE
from pipeline.spec_paths import anchored
from schemas.errors import SpecError
from schemas.pipeline import AnyJob
from schemas.rendering import RenderSettings, SlurmSettings

_OURS = {
    "--nodes", "--ntasks", "--ntasks-per-node", "--cpus-per-task", "--exclusive", "--mem", "--mincpus", "--time",
    "--gpus-per-node", "--gpus", "--gres", "--requeue", "--no-requeue", "--signal", "--job-name", "--array", "--wrap",
}  # fmt: skip


def batch_script(job: AnyJob, settings: RenderSettings) -> str:
    """For ``sbatch``. Relative paths of the job mean the current directory.

    Raises:
        SpecError: a setting that is missing or does not fit.
    """
    slurm = settings.slurm
    _require_own_directives(slurm)
    if slurm.time <= slurm.signal_before:
        raise SpecError(
            f"slurm.time ({slurm.time} s) must be longer than slurm.signal_before ({slurm.signal_before} s), the time "
            "that is left when the job puts itself into the queue again"
        )
    (nodes,) = nodes_for(job, demands_of(job, settings), settings, alike=True)
    content = {"job": anchored(job, Path.cwd()).model_dump(mode="json"), "attempt": 0}
    return filled(
        "job.sbatch.j2",
        options=_options(settings.name or cluster_name(job.name), nodes, slurm),
        modules=slurm.modules,
        venv=slurm.venv,
        environment=settings.environment,
        folder=slurm.folder,
        # Text within JSON has no line ends, and every line begins with a brace or blanks: none ends the block early.
        job=json.dumps(content, indent=1),
        job_file=JOB_FILE,
        node_timeout=slurm.node_timeout,
        scratch=settings.scratch,
        interface=slurm.interface,
        port=slurm.port,
        nodes=nodes.number,
        cpus=nodes.cpus,
        gpus=nodes.gpus,
        object_store=nodes.object_store_bytes,
        max_requeues=slurm.max_requeues,
    )


def _options(name: str, nodes: Nodes, slurm: SlurmSettings) -> list[str]:
    """Lines of ``#SBATCH``; sbatch reads them itself, no shell does."""
    found = {
        "job-name": name,
        "partition": slurm.partition,
        "account": slurm.account,
        "nodes": str(nodes.number),
        "ntasks-per-node": "1",
        "mincpus": str(nodes.cpus),
        "mem": f"{nodes.memory_bytes // 2**20}M",
        "time": _clock(slurm.time),
        # To the script alone: the job's processes go on until the queue takes them down.
        "signal": f"B:USR1@{slurm.signal_before}",
        "open-mode": "append",
    }
    if nodes.gpus:
        found["gpus-per-node"] = f"{slurm.gpu_type}:{nodes.gpus}" if slurm.gpu_type else str(nodes.gpus)
    options = [f"--{option}={value}" for option, value in found.items() if value]
    return [*options, "--exclusive", "--requeue", *slurm.directives]


def _require_own_directives(slurm: SlurmSettings) -> None:
    for directive in slurm.directives:
        if directive.partition("=")[0] in _OURS:
            raise SpecError(
                f"slurm.directives: {directive} is decided by the job and other settings (nodes, workers_per_node, "
                "slurm.time, ...): leave it out"
            )


def _clock(seconds: int) -> str:
    """``1-02:03:04``, days first."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}-{hour:02}:{minute:02}:{second:02}"
