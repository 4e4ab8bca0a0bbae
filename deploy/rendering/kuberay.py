"""KubeRay: a RayCluster to submit jobs to, or a RayJob with a cluster of its own (``ray.io/v1``, KubeRay 1.7)."""

from __future__ import annotations

import json
from typing import Any

import yaml

from deploy.rendering.demand import demands_of
from deploy.rendering.nodes import Nodes, nodes_for
from deploy.rendering.pods import JOB_FOLDER, head_template, start_params, worker_template
from deploy.rendering.settings import cluster_name
from deploy.rendering.visible import local_paths
from deploy.submission import JOB_FILE
from schemas.errors import SpecError
from schemas.pipeline import AnyJob
from schemas.rendering import RenderSettings
from schemas.versions import versions

API = "ray.io/v1"
_CONFIG_LIMIT_BYTES = 1_000_000
_ONCE = 'kubectl create secret generic {name} --from-literal=auth_token="$(ray get-auth-token --generate)"{namespace}'


def ray_job(job: AnyJob, settings: RenderSettings) -> str:
    """A ConfigMap with the job and the RayJob that runs it.

    Raises:
        SpecError: a setting that is missing, or a local path that no pod sees.
    """
    name = settings.name or cluster_name(job.name)
    content = json.dumps({"job": job.model_dump(mode="json"), "attempt": 0}, indent=1)
    if len(content.encode()) > _CONFIG_LIMIT_BYTES:
        raise SpecError(
            f"{job.name}: the job is {len(content.encode()):,} bytes long, and a ConfigMap holds 1 MiB: use target "
            "kuberay-cluster and `headworks submit`"
        )
    _require_visible(job, settings)
    kubernetes = settings.kubernetes
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(f"{name}-job", settings),
        "data": {JOB_FILE: content + "\n"},
    }
    spec: dict[str, Any] = {
        "entrypoint": f"python -m deploy.entry {JOB_FOLDER}/{JOB_FILE}",
        # A retry is a new cluster. The job goes on from what is committed, so it loses nothing but the time.
        "backoffLimit": kubernetes.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": kubernetes.keep,
        "rayClusterSpec": _cluster_spec(job, settings, job_config=f"{name}-job"),
    }
    if kubernetes.deadline:
        spec["activeDeadlineSeconds"] = kubernetes.deadline
    ray_job = {"apiVersion": API, "kind": "RayJob", "metadata": _metadata(name, settings), "spec": spec}
    return _documents([config, ray_job], settings)


def ray_cluster(job: AnyJob, settings: RenderSettings) -> str:
    """A RayCluster that has room for the job, to hand it to with ``headworks submit``.

    Raises:
        SpecError: as ``ray_job``.
    """
    _require_visible(job, settings)
    metadata = _metadata(settings.name or cluster_name(job.name), settings)
    spec = _cluster_spec(job, settings, job_config="")
    return _documents([{"apiVersion": API, "kind": "RayCluster", "metadata": metadata, "spec": spec}], settings)


def _cluster_spec(job: AnyJob, settings: RenderSettings, *, job_config: str) -> dict[str, Any]:
    if settings.image is None:
        raise SpecError(
            "image is not given: name the container image that has Headworks (--image REGISTRY/headworks:TAG); "
            "`headworks render --target docker` writes the Dockerfile"
        )
    kubernetes = settings.kubernetes
    auth = {"mode": "token"} | ({"secretName": kubernetes.token_secret} if kubernetes.token_secret else {})
    spec: dict[str, Any] = {"rayVersion": versions()["ray"], "authOptions": auth}
    if kubernetes.autoscaling:
        spec["enableInTreeAutoscaling"] = True
        spec["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": kubernetes.idle_timeout,
            "upscalingMode": "Default",
        }
    spec["headGroupSpec"] = {
        "rayStartParams": start_params(None, settings),
        "template": head_template(settings, job_config),
    }
    groups = nodes_for(job, demands_of(job, settings), settings)
    spec["workerGroupSpecs"] = [_group(nodes, settings) for nodes in groups]
    return spec


def _group(nodes: Nodes, settings: RenderSettings) -> dict[str, Any]:
    return {
        "groupName": f"{nodes.kind}-workers",
        # All at once at first: a job looks at the machines that are there to place its model.
        "replicas": nodes.number,
        "minReplicas": nodes.least if settings.kubernetes.autoscaling else nodes.number,
        "maxReplicas": nodes.number,
        "rayStartParams": start_params(nodes, settings),
        "template": worker_template(nodes, settings),
    }


def _require_visible(job: AnyJob, settings: RenderSettings) -> None:
    """Raises SpecError where a path of the job is on no storage that pods see."""
    mounts = [one.path.rstrip("/") for one in settings.kubernetes.volumes]
    for field, path in local_paths(job):
        if not any(path == mount or path.startswith(f"{mount}/") for mount in mounts) or "/../" in f"{path}/":
            raise SpecError(
                f"{job.name}: {field} is {path!r}, a path of this machine that no pod sees: give a URL (s3://...), or "
                f"an absolute path below a shared volume of kubernetes.volumes (now: {', '.join(mounts) or 'none'})"
            )


def _metadata(name: str, settings: RenderSettings) -> dict[str, Any]:
    namespace = settings.kubernetes.namespace
    found: dict[str, Any] = {"name": name} | ({"namespace": namespace} if namespace else {})
    return found | {"labels": {"app.kubernetes.io/part-of": "headworks"}}


def _documents(documents: list[dict[str, Any]], settings: RenderSettings) -> str:
    kubernetes = settings.kubernetes
    lines = ["# Written by `headworks render`; kubectl apply -f THIS_FILE"]
    if kubernetes.token_secret:
        namespace = f" --namespace {kubernetes.namespace}" if kubernetes.namespace else ""
        lines += ["# First, once:", f"#   {_ONCE.format(name=kubernetes.token_secret, namespace=namespace)}"]
    return "\n".join(lines) + "\n" + yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes long texts as blocks, and nothing twice by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
