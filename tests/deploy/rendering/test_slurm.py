"""The batch script: read by bash, run with a queue of our own in the place of SLURM's, fed with hostile values."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from rendering_jobs import collect, job_of, on_gpus, settings_of

from deploy.rendering.slurm import batch_script
from schemas.errors import SpecError

STAND_INS = {
    # `srun` for the address, for the step (which $STEP says what to do with) and for cleaning up.
    "srun": """case "$*" in
  *symmetric-run*) printf '%s\\n' "$@" > "$CALLS/step"; env > "$CALLS/environment"
    stat -c %a "$RAY_AUTH_TOKEN_PATH" > "$CALLS/mode"; cp "$RAY_AUTH_TOKEN_PATH" "$CALLS/token"; eval "$STEP" ;;
  *getent*) echo 10.0.0.7 ;;
  *) printf '%s\\n' "$@" > "$CALLS/clean" ;;
esac""",
    "scontrol": 'if [ "$1" = show ]; then printf "node%s\\n" 1 2 3; else echo "$*" >> "$CALLS/scontrol"; fi',
}


def script(**changes: Any) -> str:
    return batch_script(job_of(collect()), settings_of(**changes))


class Queue:
    """Runs scripts as a batch host would, without any node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        (folder / "bin").mkdir()
        self.calls.mkdir()
        for name, body in STAND_INS.items():
            path = folder / "bin" / name
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)

    def start(self, text: str, step: str, **environment: str) -> subprocess.Popen[str]:
        (self.folder / "job.sbatch").write_text(text)
        known = {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}", "HOME": str(self.folder), "CALLS": str(self.calls),
            "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_CPUS_ON_NODE": "64", "STEP": step,
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", str(self.folder / "job.sbatch")],
            env=known | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, text: str, step: str, **environment: str) -> tuple[int, str]:
        process = self.start(text, step, **environment)
        said = process.communicate(timeout=30)[0]
        return process.returncode, said

    @property
    def state(self) -> Path:
        return self.folder / ".headworks/slurm/77"


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path)


def test_directives_ask_for_what_the_workers_take() -> None:
    text = batch_script(on_gpus(), settings_of(
        workers_per_node=8, slurm={"partition": "h100", "account": "lab", "gpu_type": "h100", "time": "36h"}
        | {"directives": ["--constraint=nvme", "--no-kill"]},
    ))  # fmt: skip
    found = re.findall(r"^#SBATCH (.*)$", text, re.M)
    memory = (8 * 16 + 1 + 1) * 1024
    for option in ("--job-name=quick-start", "--nodes=2", "--ntasks-per-node=1", "--mincpus=48", f"--mem={memory}M",
                   "--time=1-12:00:00", "--signal=B:USR1@120", "--gpus-per-node=h100:8", "--exclusive", "--requeue",
                   "--partition=h100", "--account=lab", "--constraint=nvme", "--no-kill"):  # fmt: skip
        assert option in found
    # sbatch stops reading at the first line that is no comment.
    assert text.index("#SBATCH --no-kill") < text.index("set -euo pipefail")


def test_the_step_has_rays_options_and_the_job(queue: Queue) -> None:
    code, said = queue.run(script(scratch="/nvme"), 'echo 0 > "$HOME/.headworks/slurm/77/status"')
    assert (code, said) == (0, "")
    step = (queue.calls / "step").read_text().splitlines()
    assert step[step.index("--address") + 1] == "10.0.0.7:6379"
    assert step[step.index("--min-nodes") + 1] == "4"
    assert {"--num-cpus=64", "--num-gpus=0", "--cpus-per-task=64", "--nodes=4", "/nvme/headworks-77"} <= set(step)
    assert "--block" not in step
    assert step[step.index("--") + 1 :][:2] == ["bash", "-c"]
    job = json.loads((queue.state / "job.json").read_text())["job"]
    assert job["name"] == "collect"
    assert {"/nvme/headworks-77", "/tmp/ray-77"} <= set((queue.calls / "clean").read_text().splitlines())


def test_the_token_is_new_private_and_gone_at_the_end(queue: Queue) -> None:
    tokens = []
    for _ in range(2):
        queue.run(script(), 'echo 0 > "$HOME/.headworks/slurm/77/status"', RAY_AUTH_TOKEN="old")
        tokens.append((queue.calls / "token").read_text())
        assert (queue.calls / "mode").read_text().strip() == "600"
        environment = (queue.calls / "environment").read_text()
        assert "RAY_AUTH_MODE=token" in environment
        assert "RAY_AUTH_TOKEN=" not in environment
        assert tokens[-1] not in environment
    assert re.fullmatch(r"[0-9a-f]{64}", tokens[0])
    assert tokens[0] != tokens[1]
    assert not (queue.state / "token").exists()
    assert queue.state.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("step", "code"), [("echo 3 > {}; exit 0", 3), ("exit 0", 1), ("exit 7", 7)])
def test_it_ends_as_the_job_did(queue: Queue, step: str, code: int) -> None:
    """A Ray that did not start is no success, whatever symmetric-run says."""
    queue.state.mkdir(parents=True)
    (queue.state / "status").write_text("0")  # of an earlier attempt
    found, said = queue.run(script(), step.format('"$HOME/.headworks/slurm/77/status"'))
    assert found == code
    assert ("the job did not begin" in said) == (step == "exit 0")


def wait_for(path: Path) -> None:
    for _ in range(400):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never came to be")


@pytest.mark.parametrize(("restarts", "asked"), [("0", True), ("100", False)])
def test_near_the_time_limit_it_asks_to_run_again(queue: Queue, restarts: str, asked: bool) -> None:
    process = queue.start(script(), "touch $CALLS/begun; exec sleep 60", SLURM_RESTART_COUNT=restarts)
    wait_for(queue.calls / "begun")
    process.send_signal(signal.SIGUSR1)
    if asked:
        wait_for(queue.calls / "scontrol")
        assert (queue.calls / "scontrol").read_text() == "requeue 77\n"
    process.send_signal(signal.SIGTERM)  # as the queue does next
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert (queue.calls / "scontrol").exists() == asked


def test_modules_and_environment_are_there_before_ray(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/activate").write_text("export ACTIVE=$UNSET/yes\n")
    text = script(
        environment={"NOTE": "$(touch ran) `x` 'y' \"z\" \\ !"},
        slurm={"modules": ["cuda/13.0"], "venv": str(tmp_path / "venv"), "folder": str(tmp_path / "state")},
    )
    queue.run(f'module() {{ export LOADED="$2"; }}\n{text}', f'echo 0 > "{tmp_path}/state/77/status"')
    environment = (queue.calls / "environment").read_text().splitlines()
    assert {"LOADED=cuda/13.0", "ACTIVE=/yes", "NOTE=$(touch ran) `x` 'y' \"z\" \\ !"} <= set(environment)
    assert not (Path.cwd() / "ran").exists()


def words_of(text: str) -> list[str]:
    """Everything that bash would do: the script without the job, which is data."""
    head, _, rest = text.partition("<<'HEADWORKS_JOB'\n")
    job, _, tail = rest.partition("\nHEADWORKS_JOB\n")
    json.loads(job)
    return [*shlex.split(head, comments=True), *shlex.split(tail, comments=True)]


FIELDS = ["partition", "account", "gpu_type", "venv", "folder", "interface", "directives", "modules"]
HOSTILE = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40)


@settings(deadline=None, max_examples=50)
@given(HOSTILE, st.text(max_size=60))
def test_no_value_becomes_a_command(value: str, path: str) -> None:
    """Whatever stands in environment and job, the words of the script are the same but for that one."""
    plain = words_of(script(environment={"NOTE": "plain"}))
    job = job_of(collect(model={"path": f"org/{path}\nHEADWORKS_JOB\nrm -rf $(pwd)", "revision": value}))
    text = batch_script(job, settings_of(environment={"NOTE": value}))
    assert [word if word != f"NOTE={value}" else "NOTE=plain" for word in words_of(text)] == plain


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(["partition", "account", "gpu_type", "venv", "folder", "interface", "directives", "modules"]),
    HOSTILE,
)
def test_settings_that_reach_a_directive_are_words(field: str, value: str) -> None:
    try:
        known = settings_of(slurm={field: [value] if field in ("directives", "modules") else value})
        text = batch_script(on_gpus(), known)
    except (SpecError, ValueError):
        return
    assert not set(value) & set(" \t\n\r\v\f\"'`$;&|<>(){}*?!#\\~")
    assert text.count("\n") <= script().count("\n") + on_gpus().model_dump_json(indent=1).count("\n")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"directives": ["--nodes=3"]}, "slurm.directives: --nodes=3 is decided by the job"),
        ({"time": "60s"}, r"slurm.time \(60 s\) must be longer"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        script(slurm=changes)


def test_bash_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "job.sbatch"
    path.write_text(batch_script(on_gpus(), settings_of(scratch="/nvme", slurm={"interface": "ib0", "modules": ["a"]})))
    found = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
