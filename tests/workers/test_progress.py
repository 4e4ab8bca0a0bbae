"""What a person sees of a long job, with and without a terminal."""

from __future__ import annotations

import io

import pytest

from workers.progress import Progress, clock_time, short


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0"),
        (7, "7"),
        (0.5, "0.50"),
        (999, "999"),
        (1000, "1.00k"),
        (12345, "12.3k"),
        (1.2e6, "1.20M"),
        (5e15, "5000T"),
    ],
)
def test_amounts_have_three_figures(amount: float, text: str) -> None:
    assert short(amount) == text


def test_times_read_like_a_clock() -> None:
    assert clock_time(63.4) == "1:03"
    assert clock_time(3723) == "1:02:03"


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, interval_s=10, clock=clock).task("collect", total=1000, done=400) as task:
        for _ in range(5):
            clock.now_s += 4
            task.advance(100, size_bytes=200_000)
    assert stream.getvalue().splitlines() == [
        "collect: 700/1.00k tokens, 25 tokens/s, 50.0kB/s, 0:12 left",
        "collect: 900/1.00k tokens, 25 tokens/s, 50.0kB/s, 0:04 left, in 0:20",
    ]


def test_what_an_earlier_run_did_is_not_in_the_rate() -> None:
    clock = Clock()
    with Progress(clock=clock).task("collect", total=100, done=90) as task:
        clock.now_s += 5
        task.advance(5)
        assert task.rate == 1.0
        assert task.figures.startswith("95/100 tokens")


def test_a_terminal_gets_a_bar_and_lasting_notes() -> None:
    stream = Terminal()
    progress = Progress(stream)
    with progress.task("collect", total=10) as task:
        task.advance(5, size_bytes=100)
        progress.note("unit 3 [again]")
    assert "unit 3 [again]" in stream.getvalue()
    assert "collect" in stream.getvalue()


def test_no_stream_is_silent() -> None:
    with Progress().task("collect") as task:
        task.advance(1)
    Progress().note("nobody hears")


def test_a_task_that_ends_in_an_error_does_not_claim_to_be_done() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Progress(stream).task("collect", total=10):
        raise RuntimeError
    assert stream.getvalue() == ""
