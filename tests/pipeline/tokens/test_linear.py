"""Forward-only streams, entered in the middle."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from pipeline.tokens.linear import close_stream, read_range


class Stream:
    """Places 0, 3, 6, ... and a count of how often it was opened."""

    def __init__(self, length: int = 20) -> None:
        self.length = length
        self.num_opened = 0

    def open(self) -> Iterator[tuple[int, str]]:
        self.num_opened += 1
        return ((3 * i, f"item {i}") for i in range(self.length))


def test_rising_ranges_open_the_stream_once() -> None:
    close_stream()
    stream = Stream()
    found = [item for start in range(0, 60, 10) for item in read_range("rising", start, start + 10, stream.open)]
    assert found == list(stream.open())
    assert stream.num_opened == 2
    close_stream()


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 20)), max_size=8))
def test_any_order_of_ranges_gives_the_same_items(ranges: list[tuple[int, int]]) -> None:
    close_stream()
    for start, length in ranges:
        stream = Stream()
        expected = [(place, item) for place, item in stream.open() if start <= place < start + length]
        assert list(read_range("any", start, start + length, stream.open)) == expected
    close_stream()


def test_another_stream_takes_nothing_from_the_one_left_open() -> None:
    close_stream()
    ours, theirs = Stream(5), Stream(3)
    assert len(list(read_range("ours", 0, 6, ours.open))) == 2
    assert list(read_range("theirs", 6, 9, theirs.open)) == [(6, "item 2")]
    assert list(read_range("ours", 6, 9, ours.open)) == [(6, "item 2")]
    assert (ours.num_opened, theirs.num_opened) == (2, 1)
    close_stream()
