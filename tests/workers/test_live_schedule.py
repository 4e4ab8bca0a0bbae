"""Which blocks are made: never too many, never out of reach, whatever readers do."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.live_schedule import BlockSchedule

NUM_UNITS = 12


def test_blocks_are_made_in_order_up_to_the_limit() -> None:
    schedule = BlockSchedule(NUM_UNITS, ahead=3)
    assert schedule.next_unit() is None  # nobody is there, nobody is expected
    schedule.expect(0)
    assert [schedule.next_unit() for _ in range(4)] == [0, 1, 2, None]
    assert schedule.made(0) == []
    schedule.want((0, 0, 1), 0)
    assert schedule.done_before((0, 0, 1), 1) == [0]
    assert [schedule.next_unit(), schedule.next_unit()] == [3, None]


def test_the_slowest_rank_decides() -> None:
    schedule = BlockSchedule(NUM_UNITS, ahead=2)
    for rank in range(2):
        schedule.want((0, rank, 2), 0)
    for unit in (schedule.next_unit(), schedule.next_unit()):
        assert unit is not None
        schedule.made(unit)
    assert schedule.done_before((0, 0, 2), 2) == []
    assert schedule.next_unit() is None
    assert schedule.done_before((0, 1, 2), 1) == [0]
    assert schedule.next_unit() == 2


def test_a_new_attempt_forgets_the_readers_before_it() -> None:
    schedule = BlockSchedule(NUM_UNITS, ahead=2)
    schedule.want((0, 0, 2), 0)
    schedule.want((0, 1, 2), 9)
    assert schedule.want((1, 0, 2), 6)
    assert schedule.low == 6
    assert schedule.done_before((1, 0, 2), 9) == []
    assert schedule.low == 6  # the other rank has yet to come
    assert not schedule.want((0, 1, 2), 9)
    assert [schedule.next_unit(), schedule.next_unit(), schedule.next_unit()] == [6, 7, None]


def test_what_somebody_waits_for_is_made_wherever_it_lies() -> None:
    schedule = BlockSchedule(NUM_UNITS, ahead=1)
    schedule.want((0, 0, 1), 5)
    schedule.want((0, 0, 1), 8)
    schedule.need(2)
    assert sorted(filter(None, [schedule.next_unit() for _ in range(5)])) == [2, 5, 8]
    assert schedule.made(2) == [2]  # known, and wanted by nobody


def test_a_lost_or_failed_block_is_made_again() -> None:
    schedule = BlockSchedule(NUM_UNITS, ahead=1)
    schedule.want((0, 0, 1), 4)
    assert schedule.next_unit() == 4
    schedule.failed(4)
    assert schedule.next_unit() == 4
    schedule.made(4)
    assert schedule.next_unit() is None
    schedule.lost(4)
    assert schedule.next_unit() == 4


@settings(max_examples=100, deadline=None)
@given(
    ahead=st.integers(1, 4),
    num_ranks=st.integers(1, 3),
    windows=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    trouble=st.floats(0, 0.4),
)
def test_every_reader_gets_every_unit_and_memory_is_bounded(
    ahead: int, num_ranks: int, windows: list[int], seed: int, trouble: float
) -> None:
    """Ranks that read windows of any length, asking for all units of one at once; makers that fail; blocks that vanish;
    restarts of all ranks from some window before."""
    random = Random(seed)
    cuts = [0]
    while cuts[-1] < NUM_UNITS:
        cuts.append(min(NUM_UNITS, cuts[-1] + windows[len(cuts) % len(windows)]))
    schedule = BlockSchedule(NUM_UNITS, ahead)
    attempt, place = 0, [0] * num_ranks
    making: list[int] = []
    longest = max(b - a for a, b in pairwise(cuts))
    for _ in range(3000):
        if all(at == len(cuts) - 1 for at in place):
            break
        # Ranks step together, so one is at most a window ahead of another.
        rank = random.choice([rank for rank in range(num_ranks) if place[rank] <= min(place) + 1])
        if place[rank] < len(cuts) - 1:
            units = range(cuts[place[rank]], cuts[place[rank] + 1])
            for unit in units:
                assert schedule.want((attempt, rank, num_ranks), unit)
            if all(unit in schedule.ready for unit in units):
                place[rank] += 1
                schedule.done_before((attempt, rank, num_ranks), cuts[place[rank]])
        if (unit := schedule.next_unit()) is not None:
            making.append(unit)
        if making and random.random() < 0.7:
            unit = making.pop(random.randrange(len(making)))
            schedule.failed(unit) if random.random() < trouble else schedule.made(unit)
        if schedule.ready and random.random() < trouble / 4:
            schedule.lost(min(schedule.ready))
        if random.random() < trouble / 20:
            attempt += 1
            back = random.randrange(min(place) + 1)
            place = [back] * num_ranks
        assert len(schedule.ready) <= 3 * longest + ahead
    else:
        raise AssertionError(f"readers are stuck at windows {place} of {len(cuts) - 1}")
