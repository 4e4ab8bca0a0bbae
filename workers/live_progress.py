"""Progress of several jobs at the same time, from a thread each, and the way to stop them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from workers.progress import Progress, Task, _show_bar


class JointProgress(Progress):
    """Shows the tasks of several threads one below the other. A context manager; stands in for ``around`` meanwhile.

    Once ``stop`` is set, the next sign of life of any task raises KeyboardInterrupt in the thread that gives it: a job
    ends then as it does when a user interrupts it.
    """

    def __init__(self, around: Progress) -> None:
        super().__init__(around._stream, interval_s=around._interval_s, clock=around._clock)
        self._console = around._console
        self.events = around.events
        self.stop = Event()
        self._lock = Lock()
        self._bar: Bar | None = None
        if self._console is not None:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}")
            self._bar = Bar(*columns, console=self._console, transient=True, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """One line that stays; lines of two threads do not mix."""
        with self._lock:
            super().note(text)

    @contextmanager
    def _display(self, name: str) -> Iterator[Callable[[Task], None]]:
        if self._bar is None:
            yield self._lines()
            return
        bar, line = self._bar, self._bar.add_task(name, total=None, figures="")

        def show(task: Task) -> None:
            self._require_going()
            _show_bar(bar, line, task)

        try:
            yield show
        finally:
            bar.remove_task(line)

    def _lines(self) -> Callable[[Task], None]:
        """A line now and then, of each task by itself."""
        next_s = self._clock() + self._interval_s

        def show(task: Task) -> None:
            nonlocal next_s
            self._require_going()
            if self._stream is not None and self._clock() >= next_s:
                self._line(task)
                next_s = self._clock() + self._interval_s

        return show

    def _require_going(self) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt
