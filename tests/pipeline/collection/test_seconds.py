"""What binds a collection, from the seconds of its stages."""

from __future__ import annotations

import pytest

from pipeline.collection.seconds import StageSeconds, added, binding


def test_work_and_stall_of_a_stage_add_up_to_the_time_that_passed() -> None:
    seconds = StageSeconds()
    seconds.work("forward", 2.0)
    seconds.time("forward", 3.0)
    seconds.time("forward", 0.5)
    seconds.work("read", 0.25)
    assert seconds.figures() == {"forward": 2.0, "read": 0.25, "stall_forward": 1.5}


def test_of_several_threads_it_is_their_mean() -> None:
    seconds = StageSeconds(num_threads={"write": 4})
    for _ in range(4):
        seconds.work("write", 1.0)
        seconds.time("write", 2.0)
    assert seconds.figures() == {"write": 1.0, "stall_write": 1.0}


@pytest.mark.parametrize(
    ("unit", "binds", "words"),
    [
        ({"forward": 9.0, "stall_forward": 1.0, "write": 2.0}, "compute", "compute binds"),
        ({"forward": 2.0, "stall_forward": 8.0, "write": 9.0, "commit": 0.5}, "storage", "the network binds"),
        ({"forward": 2.0, "stall_forward": 8.0, "encode": 9.9}, "encode", "encoding binds"),
        ({"forward": 2.0, "stall_forward": 8.0, "copy": 7.0}, "copy", "copying from the device binds"),
        ({"forward": 2.0, "stall_forward": 8.0, "read": 9.0}, "tokens", "reading tokens binds"),
        ({"forward": 2.0, "stall_forward": 8.0, "write": 1.0}, "units", "waiting for units binds"),
    ],
)
def test_the_resource_in_use_most_of_the_time_binds(unit: dict[str, float], binds: str, words: str) -> None:
    found = binding(added([unit, unit]))
    assert found.binds == binds
    assert words in found.words("the network")
    assert max(found.shares.values()) <= 1.0


def test_nothing_computed_binds_nothing() -> None:
    found = binding({})
    assert (found.shares, found.binds, found.words("the disk")) == ({}, "", "")
