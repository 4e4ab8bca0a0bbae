"""The image of head, workers and service."""

from __future__ import annotations

import json

from deploy.rendering.demand import demands_of
from deploy.rendering.templating import filled
from schemas.pipeline import AnyJob
from schemas.rendering import RenderSettings

SERVICE_PORT = 8470
"""Of the service, within its container."""

SERVE = ["headworks", "serve", "--host", "0.0.0.0", "--port", str(SERVICE_PORT)]  # noqa: S104 - of the container
"""What the service's container runs."""


def dockerfile(job: AnyJob | None, settings: RenderSettings) -> str:
    """To be built from a checkout of Headworks. The last stage is for clusters, stage ``service`` for the service."""
    docker = settings.docker
    variant = docker.variant
    if variant == "auto":
        variant = "cu130" if job is not None and _has_gpus(job, settings) else "cpu"
    return filled(
        "Dockerfile.j2",
        python=docker.python,
        variant=variant,
        extras=",".join(docker.extras),
        user_id=docker.user_id,
        environment=settings.environment,
        port=SERVICE_PORT,
        serve=json.dumps(SERVE),
    )


def dockerfile_target() -> dict[str, str]:
    """What compose builds of the file: the stage with the service."""
    return {"dockerfile": "Dockerfile", "target": "service"}


def _has_gpus(job: AnyJob, settings: RenderSettings) -> bool:
    given = settings.model_copy(update={"worker_memory": 1, "grace": 1})
    return any(one.gpus for stage in demands_of(job, given) for one in stage)
