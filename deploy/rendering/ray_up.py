"""Plain machines: the file of ``ray up``, which starts Ray on them through ssh."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from deploy.rendering.demand import demands_of
from deploy.rendering.nodes import Nodes, nodes_for
from deploy.rendering.settings import cluster_name
from schemas.errors import SpecError
from schemas.pipeline import AnyJob
from schemas.rendering import RenderSettings

_HEADER = """\
# Written by `headworks render`. Once, here:   ray get-auth-token --generate
# Start, or bring up to date:   ray up THIS_FILE
# Reach it, then hand it jobs:  ray dashboard THIS_FILE; headworks submit SPEC.yaml --address http://127.0.0.1:8265
"""
_TOKEN = "~/.ray/auth_token"  # noqa: S105 - a path


def ray_up(job: AnyJob, settings: RenderSettings) -> str:
    """Machines that are there (provider ``local``), with token authentication.

    Raises:
        SpecError: fewer machines than the job's workers need.
    """
    hosts = settings.hosts
    if hosts.head is None:
        raise SpecError("hosts.head is not given: name the machine that shall be the head (--setting hosts.head=HOST)")
    if hosts.head in hosts.workers or len(set(hosts.workers)) != len(hosts.workers):
        raise SpecError("hosts.workers names a machine twice, or the head: every machine is named once")
    number = 1 + len(hosts.workers)
    if settings.nodes is None:
        settings = settings.model_copy(update={"nodes": None if _is_fixed(job, settings) else number})
    (nodes,) = nodes_for(job, demands_of(job, settings), settings, alike=True)
    if nodes.number > number:
        raise SpecError(
            f"hosts names {number} machines, the head among them, but the job's workers need {nodes.number}: add "
            "machines to hosts.workers, raise workers_per_node, or lower workers.num_workers"
        )
    others = len(hosts.workers)
    config: dict[str, Any] = {
        "cluster_name": settings.name or cluster_name(job.name),
        "provider": {"type": "local", "head_ip": hosts.head, "worker_ips": list(hosts.workers)},
        "auth": {"ssh_user": hosts.user} | ({"ssh_private_key": hosts.key} if hosts.key else {}),
        "min_workers": others,
        "max_workers": others,
        "file_mounts": {_TOKEN: hosts.token_file},
        "initialization_commands": ["mkdir -p -m 700 ~/.ray"],
        "setup_commands": [f"chmod 600 {_TOKEN}", f"{_activated(settings)}python -c 'import deploy.entry'"],
        "head_start_ray_commands": start_commands(nodes, settings, is_head=True),
        "worker_start_ray_commands": start_commands(nodes, settings, is_head=False),
    }
    return _HEADER + yaml.safe_dump(config, sort_keys=False, width=1000)


def start_commands(nodes: Nodes, settings: RenderSettings, *, is_head: bool) -> list[str]:
    """What a machine runs. Ray finds its cores and GPUs itself."""
    port = settings.hosts.port
    options = [f"--object-store-memory={nodes.object_store_bytes}", "--metrics-export-port=8080"]
    if settings.scratch:
        options.append(f"--object-spilling-directory={shlex.quote(settings.scratch + '/ray-spill')}")
    if is_head:
        dashboard = settings.hosts.dashboard
        where = [f"--head --port={port} --dashboard-host={dashboard} --autoscaling-config=~/ray_bootstrap_config.yaml"]
    else:
        where = [f'--address="$RAY_HEAD_IP:{port}"']
    environment = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", **_cache(settings), **settings.environment}
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    begin = _activated(settings)
    files = 'ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"'
    return [f"{begin}ray stop", f"{begin}{{ {files}; }} && {words} ray start {' '.join(where + options)}"]


def _activated(settings: RenderSettings) -> str:
    return f". {shlex.quote(settings.hosts.venv + '/bin/activate')} && " if settings.hosts.venv else ""


def _cache(settings: RenderSettings) -> dict[str, str]:
    return {"HEADWORKS_CACHE": f"{settings.scratch}/headworks-cache"} if settings.scratch else {}


def _is_fixed(job: AnyJob, settings: RenderSettings) -> bool:
    """Whether the job itself says how many workers it has."""
    given = settings.model_copy(update={"worker_memory": 1, "grace": 1})
    return all(one.number is not None for stage in demands_of(job, given) for one in stage)
