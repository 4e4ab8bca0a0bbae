"""Rendered files run for real: several Ray nodes on machines made of namespaces, and a collect job over them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "pipeline/collection"))

from namespaces import Machines, missing
from small_job import HOOKS, save_corpus, save_model, small_spec

from deploy.rendering.ray_up import ray_up
from deploy.rendering.slurm import batch_script
from pipeline.store.reader import Store
from schemas.pipeline import PipelineSpec
from schemas.rendering import RenderSettings

pytestmark = [pytest.mark.long, pytest.mark.ray]

# A task on every machine, or on the one of --nodelist, as SLURM would start them.
SRUN = """#!/bin/bash
nodes=({nodes})
while [[ "$1" == --* ]]; do
  case "$1" in --nodelist=node*) nodes=("${{1#--nodelist=node}}") ;; esac
  shift
done
tasks=()
for node in "${{nodes[@]}}"; do {enter} "$node" "$@" & tasks+=($!); done
trap 'kill -KILL "${{tasks[@]}}"' TERM
code=0
for task in "${{tasks[@]}}"; do wait "$task" || code=$?; done
exit $code
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, since Ray's sockets have long names."""
    found = Path(tempfile.mkdtemp(prefix="hw"))
    yield found
    shutil.rmtree(found)


@pytest.fixture
def machines(folder: Path) -> Iterator[Machines]:
    if why := missing():
        pytest.skip(why)
    with Machines(folder, 2) as found:
        yield found


def spread_job(folder: Path) -> PipelineSpec:
    """A replica of two processes; a machine has one core, so they are on two machines."""
    workers = {"num_workers": 1, "placement": "stages", "processes_per_replica": 2}
    model, corpus = save_model(folder / "model"), save_corpus(folder / "corpus")
    spec = small_spec(model, corpus, folder / "store", workers=workers)
    cluster = {"object_store_memory": "80MiB"}
    facts = {"jobs": [spec.model_dump(mode="json")], "cluster": cluster, "output": str(folder / "run")}
    return PipelineSpec.model_validate(facts)


def require_whole(folder: Path) -> None:
    store = Store.open(str(folder / "store"))
    assert store.verify(deep=True) == []
    assert set(store.hook_points) == set(HOOKS)
    assert store.num_rows > 256


def environment(folder: Path) -> dict[str, str]:
    kept = {"PATH", "LANG", "LC_ALL"}
    known = {name: value for name, value in os.environ.items() if name in kept}
    return {**known, "HOME": str(folder), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def test_the_batch_script_runs_a_job_over_its_nodes(folder: Path, machines: Machines) -> None:
    job = spread_job(folder)
    slurm = {"venv": sys.prefix, "folder": str(folder / "state"), "interface": "eth0"}
    settings = RenderSettings.model_validate({"worker_memory": "1GiB", "grace": "5s", "slurm": slurm})
    (folder / "job.sbatch").write_text(batch_script(job, settings))
    (folder / "bin").mkdir()
    for name, text in {
        "srun": SRUN.format(nodes="1 2", enter=machines.enter),
        "scontrol": "#!/bin/bash\nprintf 'node%s\\n' 1 2\n",
    }.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    known = environment(folder)
    known |= {"PATH": f"{folder}/bin:{known['PATH']}", "SLURM_JOB_ID": str(os.getpid()), "SLURM_CPUS_ON_NODE": "1"}
    known |= {"SLURM_JOB_NODELIST": "node[1-2]"}
    found = subprocess.run(
        ["bash", str(folder / "job.sbatch")],
        env=known, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout
    require_whole(folder)
    state = folder / "state" / str(os.getpid())
    assert (state / "status").read_text().strip() == "0"
    assert not (state / "token").exists()


def test_plain_machines_run_a_job_with_a_token(folder: Path, machines: Machines) -> None:
    job = spread_job(folder)
    (folder / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json")))
    hosts = {"head": machines.address(1), "workers": [machines.address(2)], "venv": sys.prefix}
    settings = RenderSettings.model_validate({"worker_memory": "1GiB", "grace": "5s", "hosts": hosts})
    config = yaml.safe_load(ray_up(job, settings))
    # `ray up` writes this file for its autoscaler, which would start the others by ssh.
    heads = [word.replace(" --autoscaling-config=~/ray_bootstrap_config.yaml", " --num-cpus=1")
             for word in config["head_start_ray_commands"]]  # fmt: skip
    others = [word + " --num-cpus=1" if "ray start" in word else word for word in config["worker_start_ray_commands"]]
    token = folder / ".ray/auth_token"
    token.parent.mkdir(mode=0o700)
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    address = f"{machines.address(1)}:6379"
    lines = [
        "set -e",
        *heads,
        f"touch {folder}/head.up",
        f"until [ -e {folder}/other.up ]; do sleep 0.2; done",
        # Another token is turned away, the right one is taken.
        f"if RAY_AUTH_TOKEN={'0' * 64} ray status --address {address} > {folder}/stranger 2>&1; then exit 9; fi",
        f"headworks run {folder}/job.yaml --address {address}",
    ]
    known = {**environment(folder), "RAY_AUTH_MODE": "token"}
    known["PATH"] = f"{sys.prefix}/bin:{known['PATH']}"
    head = machines.start(1, "\n".join(lines), known, folder / "head.log")
    wait = f"until [ -e {folder}/head.up ]; do sleep 0.2; done"
    script = "\n".join(["set -e", wait, *others, f"touch {folder}/other.up", "sleep 300"])
    other = machines.start(2, script, {**known, "RAY_HEAD_IP": machines.address(1)}, folder / "other.log")
    try:
        code = head.wait(240)
    finally:
        for process in (head, other):
            process.kill()
            process.wait()
    assert code == 0, (folder / "head.log").read_text() + (folder / "other.log").read_text()
    assert "auth" in (folder / "stranger").read_text().lower()
    require_whole(folder)
