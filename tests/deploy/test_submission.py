"""Submission to a real Ray head with its dashboard: over HTTP, with a token, through the console script."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray_head import Head, started_head

from deploy.submission import ClusterJob, job_fingerprint, last_words, next_attempt
from schemas.errors import MismatchError
from schemas.pipeline import JOB_ADAPTER

TRAIN = {
    "kind": "train", "store": "s", "output": "o",
    "dictionaries": [{"name": "d", "sources": ["h"], "num_latents": 64}],
}  # fmt: skip


def test_the_fingerprint_leaves_resources_out() -> None:
    job = JOB_ADAPTER.validate_python(TRAIN)
    assert job_fingerprint(JOB_ADAPTER.validate_python({**TRAIN, "workers": {"num_workers": 8}})) == job_fingerprint(
        job
    )
    for other in ({"output": "p"}, {"batch_rows": 5}, {"name": "n"}):
        assert job_fingerprint(JOB_ADAPTER.validate_python({**TRAIN, **other})) != job_fingerprint(job)


def known(attempt: int, status: str) -> ClusterJob:
    return ClusterJob(f"t-abc-{attempt}", "t", "train", attempt, status, "", "", "abc", "")


def test_attempts_follow_each_other_but_never_overlap() -> None:
    ended = [known(0, "FAILED"), known(1, "STOPPED")]
    assert next_attempt([], None) == 0
    assert next_attempt(ended, None) == 2
    assert next_attempt(ended, 7) == 7
    with pytest.raises(MismatchError, match="attempt 1 of this job was there already, as t-abc-1"):
        next_attempt(ended, 1)
    for wanted in (None, 2):
        with pytest.raises(MismatchError, match="running on the cluster already, as t-abc-2"):
            next_attempt([*ended, known(2, "RUNNING")], wanted)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("Job finished successfully.", "Job finished successfully."),
        ("Job failed, last logs:\\nloading\\nKilled", "Killed"),
        (
            "Job failed, last logs:\ncollect: 1 of 2\nheadworks: two fields are wrong:\n  a: x\n  b: y\nmend them\n",
            "headworks: two fields are wrong:\n  a: x\n  b: y\nmend them",
        ),
    ],
)
def test_the_message_of_a_job_is_what_it_said_last(text: str, words: str) -> None:
    assert last_words(text) == words


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with started_head() as head:
        yield head


@pytest.fixture
def write_spec(tmp_path: Path) -> Callable[..., Path]:
    """A collect job on a random two-layer model."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline" / "collection"))
    from small_job import save_corpus, save_model, small_spec

    model, corpus = save_model(tmp_path / "model"), save_corpus(tmp_path / "corpus")

    def write(name: str, **changes: Any) -> Path:
        spec = small_spec(model, corpus, tmp_path / name, name=name, **changes).model_dump(mode="json")
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(spec))
        return path

    return write


def wait_for(head: Head, identifier: str, *statuses: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while True:
        facts: dict[str, Any] = head.json("jobs", "status", identifier)
        if facts["status"] in statuses:
            return facts
        assert time.monotonic() < deadline, facts
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.ray
def test_a_head_whose_agent_has_no_port_takes_no_jobs_and_says_why(write_spec: Callable[..., Path]) -> None:
    with socket.create_server(("", 0)) as taken, started_head(agent_port=taken.getsockname()[1]) as head:
        refused = head.headworks("submit", str(write_spec("early")))
    assert refused.returncode == 2
    assert "takes no jobs: its dashboard agent has not started" in refused.stderr
    assert "--dashboard-agent-listen-port" in refused.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_is_submitted_followed_refused_and_stopped(
    head: Head, write_spec: Callable[..., Path], tmp_path: Path
) -> None:
    assert head.json("jobs", "list") == []
    stranger = Head(head.url, {**head.environment, "HOME": str(tmp_path)}).headworks("jobs", "list")
    assert stranger.returncode == 2
    assert "asks for a token" in stranger.stderr
    spec = write_spec("quick")
    submitted = head.json("submit", str(spec))
    assert submitted["id"] == f"quick-{submitted['fingerprint'][:12]}-0"
    twice = head.headworks("submit", str(spec))
    if wait_for(head, submitted["id"], "RUNNING", "SUCCEEDED")["status"] == "RUNNING":
        assert twice.returncode == 2
        assert "two of them would write to the same output" in twice.stderr
    followed = head.headworks("jobs", "logs", submitted["id"], "--follow")
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "quick: succeeded in" in followed.stdout
    assert (tmp_path / "quick" / "manifest.json").exists()
    assert head.json("jobs", "status", submitted["id"])["status"] == "SUCCEEDED"
    assert "quick: succeeded in" in head.json("jobs", "logs", submitted["id"])["logs"]

    again = head.headworks("submit", str(spec), "--follow")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "(reused)" in again.stdout
    assert f"{submitted['id'][:-2]}-1" in again.stderr
    there = head.headworks("submit", str(spec), "--attempt", "0")
    assert there.returncode == 2
    assert "attempt 0 of this job was there already" in there.stderr

    broken = head.headworks("submit", str(write_spec("broken", hook_points=["blocks.9.hook_mlp_in"])), "--follow")
    assert broken.returncode == 1
    assert "blocks.9.hook_mlp_in" in broken.stdout
    assert "failed" in broken.stderr

    # A worker wants more cores than there are, so this one waits until it is stopped.
    waiting = head.json("submit", str(write_spec("waiting", workers={"num_workers": 1, "cpus_per_worker": 64})))
    wait_for(head, waiting["id"], "RUNNING")
    assert head.json("jobs", "stop", waiting["id"])["stopped"]
    wait_for(head, waiting["id"], "STOPPED")
    assert not head.json("jobs", "stop", waiting["id"])["stopped"]

    missing = head.headworks("jobs", "status", submitted["id"][:-1] + "9")
    assert missing.returncode == 2
    assert "did you mean" in missing.stderr
    assert [job["status"] for job in head.json("jobs", "list")] == ["STOPPED", "FAILED", "SUCCEEDED", "SUCCEEDED"]
