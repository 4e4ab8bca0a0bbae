"""What became of a task: its value, our own error as it was raised, a JobError for any other and for a death."""

from __future__ import annotations

import os
from typing import Any

import pytest
import ray

from schemas.errors import CorpusError, JobError
from workers.answers import answer_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def _task(kind: str) -> int:
    if kind == "ours":
        raise CorpusError("page 1 is not UTF-8 at byte 7")
    if kind == "other":
        raise ZeroDivisionError("of a latent that never fired")
    if kind == "dead":
        os.kill(os.getpid(), 9)
    return 7


def _ask(kind: str) -> Any:
    task = ray.remote(num_cpus=1, max_retries=0)(_task)
    return answer_of(task.remote(kind), "the search of concepts", advice="Lower mask.batch_pairs.")


def test_a_value_and_an_error_of_ours_come_out_as_they_are() -> None:
    assert _ask("fine") == 7
    with pytest.raises(CorpusError) as caught:
        _ask("ours")
    assert type(caught.value) is CorpusError
    assert str(caught.value) == "page 1 is not UTF-8 at byte 7"


def test_any_other_error_is_a_job_error_with_the_traceback_of_the_task() -> None:
    with pytest.raises(JobError) as caught:
        _ask("other")
    message = str(caught.value)
    assert message.startswith("the search of concepts failed: ")
    assert "in _task" in message
    assert "ZeroDivisionError: of a latent that never fired" in message
    assert "mask.batch_pairs" not in message


def test_a_process_that_is_killed_is_a_job_error_with_advice() -> None:
    with pytest.raises(JobError, match=r"^the search of concepts: its process died(.|\n)*Lower mask\.batch_pairs\.$"):
        _ask("dead")
