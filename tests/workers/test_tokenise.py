"""``map_parts`` is ``map``: same results, same order, same laziness within a window, same errors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from schemas.errors import CorpusError, JobError
from workers.cluster import Cluster
from workers.tokenise import map_parts

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_results_and_order_are_those_of_map() -> None:
    def square(number: int) -> int:
        time.sleep(0.05 * (number % 3))  # later items end first
        return number * number

    assert list(map_parts(square, range(8))) == list(map(square, range(8)))
    assert list(map_parts(square, [])) == []


def test_no_more_is_asked_than_two_for_each_core(ray_cluster: Cluster) -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            asked.append(item)
            yield item

    results = map_parts(lambda number: number, items())
    assert asked == []
    taken = [next(results) for _ in range(6)]
    results.close()  # type: ignore[attr-defined]
    assert taken == list(range(6))
    assert len(asked) <= 6 + 2 * ray_cluster.num_cpus


def test_an_error_is_the_one_that_the_function_raised() -> None:
    def refuse(number: int) -> int:
        if number == 1:
            raise CorpusError("page 1 is not UTF-8 at byte 7")
        return number

    results = map_parts(refuse, range(3))
    assert next(results) == 0
    with pytest.raises(CorpusError, match="not UTF-8 at byte 7") as caught:
        next(results)
    assert type(caught.value) is CorpusError


def test_a_process_that_always_dies_is_a_job_error() -> None:
    def die(_: int) -> None:
        os.kill(os.getpid(), 9)

    with pytest.raises(JobError, match="part_size"):
        list(map_parts(die, [1]))
