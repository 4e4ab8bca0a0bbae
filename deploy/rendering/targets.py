"""Which target is which file."""

from __future__ import annotations

from collections.abc import Callable

from deploy.rendering.compose import compose_file
from deploy.rendering.docker import dockerfile
from deploy.rendering.kuberay import ray_cluster, ray_job
from deploy.rendering.ray_up import ray_up
from deploy.rendering.slurm import batch_script
from schemas.errors import SpecError
from schemas.pipeline import AnyJob
from schemas.rendering import RenderSettings, Target

_OF_JOBS: dict[str, tuple[str, Callable[[AnyJob, RenderSettings], str]]] = {
    "kuberay-job": ("rayjob.yaml", ray_job),
    "kuberay-cluster": ("raycluster.yaml", ray_cluster),
    "slurm": ("job.sbatch", batch_script),
    "ray-up": ("ray-up.yaml", ray_up),
}
_WITHOUT: dict[str, tuple[str, Callable[[AnyJob | None, RenderSettings], str]]] = {
    "docker": ("Dockerfile", dockerfile),
    "compose": ("compose.yaml", compose_file),
}


def rendered(job: AnyJob | None, settings: RenderSettings, target: Target) -> tuple[str, str]:
    """``(file name, text)``.

    Raises:
        SpecError: no job where the target is made for one, or settings that do not fit it.
    """
    if target in _WITHOUT:
        name, render = _WITHOUT[target]
        return name, render(job, settings)
    if job is None:
        raise SpecError(f"SPEC is not given: target {target} is made for a job (docker and compose need none)")
    name, render_job = _OF_JOBS[target]
    return name, render_job(job, settings)
