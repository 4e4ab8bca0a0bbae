"""Pods of a RayCluster as plain data."""

from __future__ import annotations

from typing import Any

from deploy.rendering.nodes import STOP_S, Nodes
from schemas.fields import format_bytes
from schemas.rendering import RenderSettings

JOB_FOLDER = "/etc/headworks"
SCRATCH = "/scratch"
_HEAD_SHM_BYTES = 256 * 2**20
_PORTS = {"gcs": 6379, "dashboard": 8265, "client": 10001}


def head_template(settings: RenderSettings, job_config: str) -> dict[str, Any]:
    """The head runs controllers and the driver, and no workers. ``job_config``: ConfigMap with the job, or none."""
    container = _container("ray-head", settings, cpus=settings.head_cpus, memory=_quantity(settings.head_memory))
    container["ports"] = [{"name": name, "containerPort": port} for name, port in _PORTS.items()]
    volumes = [_shm_volume(_HEAD_SHM_BYTES), *_shared_volumes(settings)]
    if job_config:
        container["volumeMounts"].append({"name": "job", "mountPath": JOB_FOLDER, "readOnly": True})
        volumes.append({"name": "job", "configMap": {"name": job_config}})
    # Without one of its own the head has the account that the operator makes for the autoscaler.
    pod = {**_pod(settings, settings.kubernetes.cpu_node_selector), **_account(settings)}
    if settings.kubernetes.autoscaling:
        pod.pop("automountServiceAccountToken", None)
    return {"spec": {**pod, **_parts(container, volumes)}}


def worker_template(nodes: Nodes, settings: RenderSettings) -> dict[str, Any]:
    """A pod that holds one machine's share of the workers."""
    kubernetes = settings.kubernetes
    container = _container("ray-worker", settings, cpus=nodes.cpus, memory=_quantity(nodes.memory_bytes))
    if nodes.gpus:
        for each in container["resources"].values():
            each[kubernetes.gpu_resource] = nodes.gpus
    # The notice that a pod is to go is used to commit what is under way: Ray itself ends at once when it is told to.
    container["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", str(nodes.grace_s)]}}}
    volumes = [_shm_volume(nodes.shm_bytes), *_shared_volumes(settings)]
    scratch = settings.scratch or SCRATCH
    container["volumeMounts"].append({"name": "scratch", "mountPath": scratch})
    container["env"].append({"name": "HEADWORKS_CACHE", "value": f"{scratch}/cache"})
    volumes.append(_scratch_volume(settings))
    pod = _pod(settings, kubernetes.gpu_node_selector if nodes.gpus else kubernetes.cpu_node_selector)
    if nodes.gpus:
        pod.setdefault("tolerations", []).append({"key": kubernetes.gpu_resource, "operator": "Exists"})
    pod["terminationGracePeriodSeconds"] = nodes.grace_s + STOP_S
    return {"spec": {**pod, **_account(settings), **_parts(container, volumes)}}


def start_params(nodes: Nodes | None, settings: RenderSettings) -> dict[str, str]:
    """Options of ``ray start``, of a worker or (None) the head. The operator puts them into a shell's command line."""
    if nodes is None:
        return {
            "dashboard-host": "0.0.0.0",  # noqa: S104 - of the pod; the token guards it
            "num-cpus": "0",
            "object-store-memory": str(_HEAD_SHM_BYTES // 2),
        }
    params = {"num-cpus": str(nodes.cpus), "object-store-memory": str(nodes.object_store_bytes)}
    if nodes.gpus:
        params["num-gpus"] = str(nodes.gpus)
    params["object-spilling-directory"] = f"{settings.scratch or SCRATCH}/spill"
    return params


def _container(name: str, settings: RenderSettings, *, cpus: int, memory: str) -> dict[str, Any]:
    kubernetes = settings.kubernetes
    amounts: dict[str, Any] = {"cpu": cpus, "memory": memory}
    container: dict[str, Any] = {
        "name": name,
        "image": settings.image,
        # Kubernetes replaces $(NAME), and takes $$ for the sign.
        "env": [{"name": key, "value": value.replace("$", "$$")} for key, value in settings.environment.items()],
        "resources": {"limits": amounts, "requests": dict(amounts)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - where plasma is
            *({"name": f"shared-{index}", "mountPath": one.path} for index, one in enumerate(kubernetes.volumes)),
        ],
    }
    if kubernetes.env_secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in kubernetes.env_secrets]
    return container


def _pod(settings: RenderSettings, selector: dict[str, str]) -> dict[str, Any]:
    user = settings.kubernetes.user_id
    pod: dict[str, Any] = {
        "restartPolicy": "Never",  # as the autoscaler wants it: a pod that ended is replaced, not revived
        "securityContext": {"runAsUser": user, "runAsGroup": user, "fsGroup": user},
    }
    if selector:
        pod["nodeSelector"] = dict(selector)
    if settings.kubernetes.tolerations:
        pod["tolerations"] = [_toleration(**one.model_dump()) for one in settings.kubernetes.tolerations]
    return pod


def _account(settings: RenderSettings) -> dict[str, Any]:
    name = settings.kubernetes.service_account
    return {"serviceAccountName": name} if name else {"automountServiceAccountToken": False}


def _toleration(*, key: str, value: str, effect: str) -> dict[str, str]:
    found = {"key": key, "operator": "Equal" if value else "Exists"}
    return found | {name: text for name, text in {"value": value, "effect": effect}.items() if text}


def _parts(container: dict[str, Any], volumes: list[dict[str, Any]]) -> dict[str, Any]:
    if not container["env"]:
        del container["env"]
    return {"containers": [container], "volumes": volumes}


def _shm_volume(size_bytes: int) -> dict[str, Any]:
    return {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _quantity(size_bytes)}}


def _shared_volumes(settings: RenderSettings) -> list[dict[str, Any]]:
    return [
        {"name": f"shared-{index}", "persistentVolumeClaim": {"claimName": one.claim}}
        for index, one in enumerate(settings.kubernetes.volumes)
    ]


def _scratch_volume(settings: RenderSettings) -> dict[str, Any]:
    size = _quantity(settings.scratch_size)
    if not settings.kubernetes.scratch_class:
        return {"name": "scratch", "emptyDir": {"sizeLimit": size}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": settings.kubernetes.scratch_class,
        "resources": {"requests": {"storage": size}},
    }
    return {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def _quantity(size_bytes: int) -> str:
    """In Kubernetes' words: ``512Mi``."""
    return format_bytes(size_bytes).removesuffix("B")
