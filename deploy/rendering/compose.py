"""The service with its database on one machine, for ``docker compose``."""

from __future__ import annotations

from typing import Any

import yaml

from deploy.rendering.docker import SERVE, SERVICE_PORT, dockerfile_target
from deploy.rendering.settings import cluster_name
from schemas.pipeline import AnyJob
from schemas.rendering import RenderSettings, ServiceSettings

_HEADER = """\
# Written by `headworks render`. Once, beside this file:
#   echo "DATABASE_PASSWORD=$(openssl rand -hex 32)" > .env; chmod 600 .env
#   the token of each cluster (`ray get-auth-token` on its head) into ray-token-NAME, readable by user {user} only
#   what each team may reach into policy.yaml; keys of its own to the storage into service.env (AWS_ACCESS_KEY_ID=...)
#   docker compose -f THIS_FILE run --rm service headworks tokens create --help
# then: docker compose -f THIS_FILE up --detach          (Compose 2.24 or newer)
# It speaks plain HTTP: people reach it through a proxy with TLS.
"""
_CONFIG = "/etc/headworks/service.yaml"
_POLICY = "/etc/headworks/policy.yaml"
_DATABASE = "postgresql://headworks@database/headworks"
_PASSWORD = "${DATABASE_PASSWORD:?put it into .env beside this file}"  # noqa: S105 - where it comes from
_LOGS = {"driver": "json-file", "options": {"max-size": "50m", "max-file": "5"}}
_CONFINED: dict[str, Any] = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}


def compose_file(job: AnyJob | None, settings: RenderSettings) -> str:
    """``headworks serve`` behind one port of this machine, PostgreSQL, and volumes for both. It holds no secret."""
    service = settings.service
    image = settings.image or "headworks:service"
    document = {
        "name": settings.name or (cluster_name(job.name) if job is not None else "headworks"),
        "services": {
            "database": {
                "image": service.postgres,
                "environment": {
                    "POSTGRES_USER": "headworks",
                    "POSTGRES_DB": "headworks",
                    "POSTGRES_PASSWORD": _PASSWORD,
                },
                "volumes": ["database:/var/lib/postgresql/data"],
                "healthcheck": {
                    "test": ["CMD", "pg_isready", "--username", "headworks"],
                    "interval": "10s",
                    "timeout": "5s",
                    "retries": 6,
                },
                "networks": ["inside"],
                "restart": "unless-stopped",
                "logging": _LOGS,
            },
            "service": {
                "image": image,
                **({} if settings.image else {"build": {"context": ".", **dockerfile_target()}}),
                "command": [*SERVE, "--config", _CONFIG],
                "configs": [{"source": "service", "target": _CONFIG}, {"source": "policy", "target": _POLICY}],
                "secrets": [_token(name) for name in service.clusters],
                "extra_hosts": ["host.docker.internal:host-gateway"],
                "environment": {
                    "HEADWORKS_DATABASE": _DATABASE,
                    "PGPASSWORD": _PASSWORD,
                    "HEADWORKS_LOG": "json",
                    **_escaped(settings.environment),
                },
                "env_file": [{"path": "service.env", "required": False}],
                "depends_on": {"database": {"condition": "service_healthy"}},
                "ports": [f"{service.address}:{service.port}:{SERVICE_PORT}"],
                "volumes": ["state:/home/headworks"],
                "read_only": True,
                "tmpfs": ["/tmp"],  # noqa: S108 - of the container
                **_CONFINED,
                "networks": ["inside", "outside"],
                "restart": "unless-stopped",
                "logging": _LOGS,
            },
        },
        "configs": {
            "service": {"content": yaml.safe_dump(_config(service), sort_keys=False)},
            "policy": {"file": "./policy.yaml"},
        },
        "secrets": {_token(name): {"file": f"./{_token(name)}"} for name in service.clusters},
        "networks": {"inside": {"internal": True}, "outside": {}},
        "volumes": {"database": {}, "state": {}},
    }
    return _HEADER.format(user=settings.docker.user_id) + yaml.dump(
        document, Dumper=_Dumper, sort_keys=False, width=1000
    )


def _config(service: ServiceSettings) -> dict[str, Any]:
    """What ``headworks serve --config`` reads."""
    return {
        "database": _DATABASE,
        "policy": _POLICY,
        "clusters": {
            name: {"address": address, "token_file": f"/run/secrets/{_token(name)}"}
            for name, address in service.clusters.items()
        },
    }


def _token(name: str) -> str:
    return f"ray-token-{name}"


def _escaped(environment: dict[str, str]) -> dict[str, str]:
    """Compose replaces ``$NAME`` and takes ``$$`` for the sign."""
    return {name: value.replace("$", "$$") for name, value in environment.items()}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
