"""``headworks render`` as users type it; the memory of a small job really planned."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "pipeline/collection"))

from rendering_jobs import collect, on_gpus
from small_job import save_corpus, save_model, small_spec

from deploy.cli import main
from pipeline.planning.placement import PROCESS_BYTES

GIVEN = ("--setting", "worker_memory=8GiB", "--setting", "grace=10s")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    spec = small_spec(save_model(folder / "model"), save_corpus(folder / "corpus"), folder / "store")
    (folder / "job.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    return folder / "job.yaml"


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["render", *map(str, words)])
    return int(ended.value.code or 0)


def test_memory_and_grace_are_planned(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({
        "image": "headworks:1", "memory_margin": 2, "write_rate": "10B", "nodes": 3,
        "kubernetes": {"volumes": [{"claim": "shared", "path": str(job.parent)}]},
    }))  # fmt: skip
    assert run(job, "--target", "kuberay-job", "--settings", settings, "-o", tmp_path / "out") == 0
    assert "rayjob.yaml" in capsys.readouterr().out
    found = list(yaml.safe_load_all((tmp_path / "out/rayjob.yaml").read_text()))[1]
    (group,) = found["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    memory = int(pod["containers"][0]["resources"]["limits"]["memory"].removesuffix("Mi")) * 2**20
    taken = memory - 2**30 - int(group["rayStartParams"]["object-store-memory"])
    assert 2 * PROCESS_BYTES < taken < 2.1 * PROCESS_BYTES
    assert group["replicas"] == 3
    # A unit of 64 rows of two hook points of 32 channels in bfloat16, 10 bytes a second.
    assert int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1]) >= 64 * 32 * 2 * 2 / 10


def test_without_a_folder_it_goes_to_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(yaml.safe_dump(on_gpus().model_dump(mode="json")))
    assert run(spec, "--target", "slurm", *GIVEN, "--set", "jobs[collect].workers.num_workers=2") == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash\n")
    assert run("--target", "docker") == 0
    text = capsys.readouterr().out
    assert "AS cluster" in text
    assert run("--target", "docker", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"name": "Dockerfile", "path": None, "text": text}
    assert run("--target", "compose") == 0
    assert "postgres" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "slurm"], "SPEC is not given"),
        (["JOB", "--target", "podman"], "'--target'"),
        (["JOB", "--target", "kuberay-job", *GIVEN], "image is not given"),
        (["JOB", "--target", "kuberay-job", *GIVEN, "--image", "a b"], "settings: image: "),
        (["JOB", "--target", "kuberay-job", *GIVEN, "--image", "user:pw@x/y;id"], "settings: image: "),
        (["JOB", "--target", "slurm", *GIVEN, "--nodes", "0"], "settings: nodes: should be greater than 0"),
        (["JOB", "--target", "slurm", *GIVEN, "--nodes", "2"], "nodes is 2, but the workers of collect need 4"),
        (["JOB", "--target", "slurm", *GIVEN, "--name", "Lab Run"], "settings: name: "),
        (["JOB", "--target", "slurm", *GIVEN, "--setting", "slurm.partion=a"], "slurm.partion: unknown field; did you"),
        (["JOB", "--target", "slurm", *GIVEN, "--setting", "slurm.partition=a;b"], "slurm.partition: "),
        (["JOB", "--target", "slurm", *GIVEN, "--setting", "slurm.time=soon"], "slurm.time: a duration is"),
        (["JOB", "--target", "slurm", *GIVEN, "--setting", "slurm"], "--setting slurm: expected PATH=VALUE"),
        (["JOB", "--target", "slurm", *GIVEN, "--setting", "kubernetes.namespace=Lab"], "kubernetes.namespace: "),
        (["JOB", "--target", "slurm", *GIVEN, "--setting", "environment.HF_TOKEN=x"], "HF_TOKEN looks like a secret"),
        (["JOB", "--target", "slurm", *GIVEN, "--setting", "environment.AWS_SECRET_ACCESS_KEY=x"], "like a secret"),
        (["JOB", "--target", "slurm", *GIVEN, "--setting", "environment.A=https://u:p@h/"], "environment.A: "),
        (["JOB", "--target", "ray-up", *GIVEN], "hosts.head is not given"),
        (["JOB", "--target", "ray-up", *GIVEN, "--setting", "hosts.head=-oProxyCommand=id"], "hosts.head: "),
        (["JOB", "--target", "slurm", "--settings", "nowhere.yaml"], "no settings at nowhere.yaml"),
        (["JOB", "--target", "slurm", "--set", "model.path=/nowhere/model"], "cannot be planned here"),
        (["nowhere.yaml", "--target", "slurm"], "no job spec at nowhere.yaml"),
    ],
)  # fmt: skip
def test_mistakes_are_told(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(yaml.safe_dump(collect()))
    assert run(*[str(spec) if word == "JOB" else word for word in words]) == 2
    caught = capsys.readouterr()
    assert said in caught.err.replace("\n", " ")
    assert "Traceback" not in caught.err
    assert caught.out == ""
