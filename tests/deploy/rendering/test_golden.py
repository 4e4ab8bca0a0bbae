"""Every rendered file as it was last looked at. ``python tests/deploy/rendering/test_golden.py`` writes them anew: read
the difference before you commit it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from rendering_jobs import collect, job_of, on_cpus_and_gpus, on_gpus, settings_of

from deploy import reference
from deploy.rendering.targets import rendered
from schemas.pipeline import AnyJob
from schemas.rendering import RenderSettings, Target
from schemas.versions import versions

SETTINGS_PAGE = Path(__file__).parents[3] / "docs/cluster-settings.md"
SETTINGS_HEAD = """\
# Settings of `headworks render`

The file of `--settings`, all of whose fields may be left out; `--setting PATH=VALUE` lays one field over it. Written by
`python tests/deploy/rendering/test_golden.py`. What the files are for: [Cluster files](operations.md#cluster-files).

"""
GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, tuple[Target, AnyJob | None, RenderSettings]] = {
    "rayjob-gpus.yaml": (
        "kuberay-job",
        on_gpus(),
        settings_of(
            workers_per_node=8,
            scratch="/nvme",
            kubernetes={
                "namespace": "lab",
                "token_secret": "lab-token",
                "env_secrets": ["s3-keys"],
                "scratch_class": "local-nvme",
                "gpu_node_selector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
            },
        ),
    ),
    "raycluster-both.yaml": (
        "kuberay-cluster",
        on_cpus_and_gpus(),
        settings_of(kubernetes={"volumes": [{"claim": "lab", "path": "/lab"}], "service_account": "headworks"}),
    ),
    "job-gpus.sbatch": (
        "slurm",
        on_gpus(),
        settings_of(
            workers_per_node=8,
            scratch="/nvme",
            environment={"HF_HUB_OFFLINE": "1"},
            slurm={"partition": "h100", "account": "lab", "gpu_type": "h100", "venv": "/lab/headworks"}
            | {"modules": ["cuda/13.0"], "interface": "ib0", "directives": ["--constraint=nvme"]},
        ),
    ),
    "job-cpus.sbatch": ("slurm", job_of(collect()), settings_of()),
    "ray-up.yaml": (
        "ray-up",
        job_of(collect()),
        settings_of(
            hosts={"head": "10.0.0.1", "workers": ["10.0.0.2", "10.0.0.3", "10.0.0.4"], "key": "~/.ssh/lab"}
            | {"venv": "/opt/headworks"},
            scratch="/nvme",
        ),
    ),
    "Dockerfile.cpu": ("docker", None, settings_of()),
    "Dockerfile.cuda": ("docker", on_gpus(), settings_of()),
    "compose.yaml": ("compose", None, settings_of(image=None)),
}


def written(name: str) -> str:
    """The file without the job, whose fields have tests of their own, and without Ray's version."""
    target, job, settings = CASES[name]
    text = rendered(job, settings, target)[1].replace(f"rayVersion: {versions()['ray']}", "rayVersion: RAY")
    if job is not None and '"attempt": 0' in text:
        start = text.rindex("{", 0, text.index('"job": {'))
        stop = text.index("}", text.index('"attempt": 0')) + 1
        assert json.loads(text[start:stop])["job"] == job.model_dump(mode="json")
        text = text[:start] + "JOB" + text[stop:]
    return text


@pytest.mark.parametrize("name", CASES)
def test_it_is_as_it_was(name: str) -> None:
    assert written(name) == (GOLDEN / name).read_text("utf-8")


def settings_page() -> str:
    return SETTINGS_HEAD + reference.spec_markdown(RenderSettings).strip() + "\n"


def test_the_settings_page_has_every_field() -> None:
    assert SETTINGS_PAGE.read_text("utf-8") == settings_page()


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(CASES)


if __name__ == "__main__":
    for case in CASES:
        (GOLDEN / case).write_text(written(case), "utf-8")
    SETTINGS_PAGE.write_text(settings_page(), "utf-8")
