"""How far a long job is: a bar on a terminal, a line every ten seconds where there is none.

Shared by tokenisation, collection and training. A job opens one ``Task`` after the other and advances it; rates and the
time left are of this run alone, so what an earlier run had done raises the bar but not the rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from workers.events import EventLog

LINE_INTERVAL_S = 10.0


def short(amount: float) -> str:
    """Three figures and a decimal prefix: 1234567 -> ``1.23M``."""
    prefixes = ["", "k", "M", "G", "T"]
    while amount >= 999.5 and len(prefixes) > 1:
        amount /= 1000
        del prefixes[0]
    if amount >= 99.95 or (not prefixes[0] and amount == int(amount)):
        return f"{amount:.0f}{prefixes[0]}"
    return f"{amount:.1f}{prefixes[0]}" if amount >= 9.995 else f"{amount:.2f}{prefixes[0]}"


def clock_time(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Task:
    """One count that runs from 0 to ``total`` (0: not known)."""

    name: str
    unit: str
    total: int
    reused: int
    clock: Callable[[], float]
    shown: Callable[[Task], None]
    done: int = 0
    size_bytes: int = 0
    started_s: float = field(default=0.0)

    def __post_init__(self) -> None:
        self.done = self.reused
        self.started_s = self.clock()

    def advance(self, amount: int, size_bytes: int = 0) -> None:
        """``amount`` more units are done, and ``size_bytes`` more written."""
        self.done += amount
        self.size_bytes += size_bytes
        self.shown(self)

    def reach(self, done: int, total: int) -> None:
        """``done`` of ``total`` (0: not known) are done."""
        self.done, self.total = done, total
        self.shown(self)

    def restart_clock(self) -> None:
        """Rates and times count from now: what came before was preparation."""
        self.started_s = self.clock()

    def tick(self) -> None:
        """Nothing new, but show that the job lives."""
        self.shown(self)

    @property
    def seconds(self) -> float:
        """Since the task began."""
        return max(self.clock() - self.started_s, 1e-9)

    @property
    def rate(self) -> float:
        """Units per second of this run."""
        return (self.done - self.reused) / self.seconds

    @property
    def figures(self) -> str:
        """Done, total, rates and time left, as far as they are known."""
        parts = [f"{short(self.done)}{f'/{short(self.total)}' if self.total else ''} {self.unit}"]
        if self.done > self.reused:
            parts.append(f"{short(self.rate)} {self.unit}/s")
            if self.size_bytes:
                parts.append(f"{short(self.size_bytes / self.seconds)}B/s")
            if self.total > self.done:
                parts.append(f"{clock_time((self.total - self.done) / self.rate)} left")
        elif not self.total or self.total != self.done:
            parts.append(f"{clock_time(self.seconds)} so far")
        return ", ".join(parts)


class Progress:
    """Shows tasks on ``stream``; ``None`` shows nothing. Final."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        interval_s: float = LINE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._interval_s = interval_s
        self._clock = clock
        self._console = Console(file=stream) if stream is not None and stream.isatty() else None
        self._next_line_s = 0.0
        self.events: EventLog | None = None
        """Where machines read what happens; the job that runs sets it."""

    def event(self, name: str, **facts: Any) -> None:
        """Add a line to the event log, if there is one."""
        if self.events is not None:
            self.events.emit(name, **facts)

    @contextmanager
    def task(self, name: str, *, unit: str = "tokens", total: int = 0, done: int = 0) -> Iterator[Task]:
        """A task that is shown until the block ends; ``done`` is what an earlier run has left."""
        with self._display(name) as shown:
            task = Task(name, unit, total, done, self._clock, shown)
            shown(task)
            yield task
            if task.done > task.reused:
                self._line(task, f"in {clock_time(task.seconds)}")

    def note(self, text: str) -> None:
        """One line that stays, above the bar if there is one."""
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._stream is not None:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def _line(self, task: Task, *more: str) -> None:
        self.note(", ".join([f"{task.name}: {task.figures}", *more]))

    @contextmanager
    def _display(self, name: str) -> Iterator[Callable[[Task], None]]:
        if self._console is None:
            self._next_line_s = self._clock() + self._interval_s
            yield self._show_line
            return
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}")
        with Bar(*columns, console=self._console, transient=True, refresh_per_second=4) as bar:
            line = bar.add_task(name, total=None, figures="")
            yield lambda task: _show_bar(bar, line, task)

    def _show_line(self, task: Task) -> None:
        if self._stream is not None and self._clock() >= self._next_line_s:
            self._line(task)
            self._next_line_s = self._clock() + self._interval_s


def _show_bar(bar: Bar, line: TaskID, task: Task) -> None:
    bar.update(line, completed=task.done, total=task.total or None, figures=task.figures)
