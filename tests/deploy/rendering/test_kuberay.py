"""KubeRay's files against the schemas of its CustomResourceDefinitions, as the API server reads them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from rendering_jobs import collect, evaluate, job_of, on_cpus_and_gpus, on_gpus, settings_of, train

from deploy.rendering.kuberay import ray_cluster, ray_job
from schemas.errors import SpecError
from schemas.pipeline import AnyJob

DEFINITIONS = Path(__file__).parents[3] / "../shared/data/kuberay-v1.7.0"
FULL = {
    "name": "lab-run", "nodes": 16, "scratch": "/nvme", "environment": {"HF_HUB_OFFLINE": "1", "NOTE": "a $(b) $c 'd'"},
    "kubernetes": {
        "namespace": "lab", "token_secret": "lab-token", "env_secrets": ["s3-keys"], "service_account": "reader",
        "volumes": [{"claim": "lab", "path": "/lab"}], "cpu_node_selector": {"pool": "cpu"}, "scratch_class": "nvme",
        "gpu_node_selector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}, "deadline": "2d", "retries": 5,
        "tolerations": [{"key": "lab/reserved", "value": "sae", "effect": "NoSchedule"}, {"key": "spot"}],
    },
}  # fmt: skip


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused: the API server drops them without a word."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


@pytest.fixture(scope="module")
def validators() -> dict[str, Any]:
    """Kind -> validator. Their `metadata` is the API server's own and not in them."""
    found: dict[str, Any] = {}
    for name in ("rayjobs", "rayclusters"):
        path = DEFINITIONS / f"ray.io_{name}.yaml"
        if not path.is_file():
            pytest.skip(f"KubeRay's definitions are not at {path}")
        definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        (version,) = (one for one in definition["spec"]["versions"] if one["name"] == "v1")
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[definition["spec"]["names"]["kind"]] = jsonschema.Draft202012Validator(schema)
    return found


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


JOBS = {"gpus": on_gpus(), "both": on_cpus_and_gpus(), "cpus": job_of(collect(), evaluate())}


@pytest.mark.parametrize("known", [{}, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_the_api_server_takes_every_field(job: AnyJob, known: dict[str, Any], validators: dict[str, Any]) -> None:
    config, found = documents(ray_job(job, settings_of(**known)))
    (cluster,) = documents(ray_cluster(job, settings_of(**known)))
    for document in (found, cluster):
        errors = [f"{error.json_path}: {error.message}" for error in validators[document["kind"]].iter_errors(document)]
        assert errors == []
        assert document["apiVersion"] == "ray.io/v1"
    assert json.loads(config["data"]["job.json"])["job"] == job.model_dump(mode="json")
    assert set(config) == {"apiVersion", "kind", "metadata", "data"}


def test_the_check_itself_sees_what_is_wrong(validators: dict[str, Any]) -> None:
    _, found = documents(ray_job(on_gpus(), settings_of()))
    container = found["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["resources"]["limits"]["memory"] = "8GiB"
    container["lifecycel"] = {}
    found["spec"]["backoffLimit"] = "3"
    assert len(list(validators["RayJob"].iter_errors(found))) == 3


HOSTILE = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)


@settings(deadline=None, max_examples=20)
@given(HOSTILE, st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60))
def test_values_come_back_as_they_were_and_change_nothing_else(value: str, revision: str) -> None:
    job = job_of(collect(model={"path": "a/b", "revision": revision}))
    config, found = documents(ray_job(job, settings_of(environment={"NOTE": value})))
    assert json.loads(config["data"]["job.json"])["job"] == job.model_dump(mode="json")
    pods = [found["spec"]["rayClusterSpec"]["headGroupSpec"], found["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]]
    for pod in pods:
        (note,) = (one for one in pod["template"]["spec"]["containers"][0]["env"] if one["name"] == "NOTE")
        assert note["value"].replace("$$", "$") == value.replace("$$", "$")
        note["value"] = "plain"
    plain = documents(ray_job(job, settings_of(environment={"NOTE": "plain"})))[1]
    assert found == plain


def workers_of(text: str) -> list[dict[str, Any]]:
    spec = documents(text)[-1]["spec"]
    return list(spec.get("rayClusterSpec", spec)["workerGroupSpecs"])


def test_groups_are_those_of_the_job() -> None:
    gpus, cpus = workers_of(ray_cluster(on_cpus_and_gpus(), settings_of()))
    assert (gpus["groupName"], gpus["replicas"], cpus["groupName"], cpus["replicas"]) == (
        "gpu-workers",
        2,
        "cpu-workers",
        8,
    )
    limits = gpus["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in cpus["template"]["spec"]["containers"][0]["resources"]["limits"]
    fixed = workers_of(ray_cluster(on_cpus_and_gpus(), settings_of(kubernetes={"autoscaling": False})))
    assert [one["minReplicas"] for one in fixed] == [2, 8]


def test_a_pod_may_end_what_it_writes_and_has_room_for_plasma() -> None:
    (group,) = workers_of(ray_cluster(job_of(collect()), settings_of(grace="90s")))
    pod = group["template"]["spec"]
    assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "90"]
    assert pod["terminationGracePeriodSeconds"] > 90
    (shm,) = (one["emptyDir"] for one in pod["volumes"] if one["name"] == "shm")
    assert shm["medium"] == "Memory"
    assert int(shm["sizeLimit"].removesuffix("Mi")) * 2**20 > int(group["rayStartParams"]["object-store-memory"])


def test_the_token_is_asked_for_and_secrets_are_named_only() -> None:
    text = ray_job(on_gpus(), settings_of(**FULL))
    spec = documents(text)[-1]["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "lab-token"}
    assert "kubectl create secret generic lab-token" in text
    container = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "s3-keys"}}]
    assert {one["name"]: one["value"] for one in container["env"]}["NOTE"] == "a $$(b) $$c 'd'"
    plain = documents(ray_cluster(on_gpus(), settings_of()))[-1]["spec"]
    assert plain["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize(
    ("kubernetes", "head", "worker"),
    [
        ({}, {}, {"automountServiceAccountToken": False}),
        ({"autoscaling": False}, {"automountServiceAccountToken": False}, {"automountServiceAccountToken": False}),
        ({"service_account": "storage"}, {"serviceAccountName": "storage"}, {"serviceAccountName": "storage"}),
    ],
)
def test_accounts_are_those_that_are_needed(kubernetes: dict[str, Any], head: Any, worker: Any) -> None:
    spec = documents(ray_cluster(on_gpus(), settings_of(kubernetes=kubernetes)))[0]["spec"]
    pods = [one["template"]["spec"] for one in (spec["headGroupSpec"], spec["workerGroupSpecs"][0])]
    keys = ("serviceAccountName", "automountServiceAccountToken")
    assert [{key: pod[key] for key in keys if key in pod} for pod in pods] == [head, worker]


def test_the_entrypoint_is_fixed_whatever_the_job_is_called() -> None:
    job = job_of(train(name="a--b.C"), evaluate())
    config, found = documents(ray_job(job, settings_of()))
    assert found["spec"]["entrypoint"] == "python -m deploy.entry /etc/headworks/job.json"
    mount = found["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"][-1]
    assert mount["mountPath"] == "/etc/headworks"
    assert config["metadata"]["name"] == "quick-start-job"


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (collect(output="runs/store"), r"collect: output is 'runs/store'.*kubernetes.volumes"),
        (collect(output="/lab/../etc"), "output is '/lab/../etc'"),
        (collect(tokens={"corpus": {"format": "text", "urls": ["/data/*.txt"]}}), r"tokens.corpus.urls\[0\] is '/data"),
        (collect(model={"path": "/models/a"}), "model.path is '/models/a'"),
    ],
)
def test_paths_that_no_pod_sees_are_refused(job: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        ray_job(job_of(job), settings_of(kubernetes={"volumes": [{"claim": "lab", "path": "/lab"}]}))


def test_paths_on_shared_volumes_are_taken() -> None:
    job = job_of(collect(output="/lab/store", model={"path": "/lab/models/a"}))
    text = ray_job(job, settings_of(kubernetes={"volumes": [{"claim": "lab", "path": "/lab"}]}))
    assert text.count("mountPath: /lab") == 2


def test_a_job_that_no_config_map_holds_is_refused() -> None:
    names = [f"{number:06}" + "x" * 50 for number in range(9000)]
    one = {"sources": ["a"], "num_latents": 64, "activation": {"kind": "topk", "k": 2}}
    with pytest.raises(SpecError, match="a ConfigMap holds 1 MiB"):
        ray_job(job_of(train(dictionaries=[{"name": name, **one} for name in names])), settings_of())


def test_an_image_is_needed() -> None:
    with pytest.raises(SpecError, match="image is not given"):
        ray_job(on_gpus(), settings_of(image=None))
