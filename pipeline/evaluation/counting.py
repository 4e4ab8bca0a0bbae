"""How far a long job is, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Progress = Callable[[dict[str, Any]], None]
"""Called now and then with the name of the ``stage`` and ``done`` of its ``total`` rows (or latents, where a stage goes
by those); ``finished`` gives those of the stages before it."""


@dataclass
class Counter:
    """What is done in the stage that runs, told to ``progress``."""

    progress: Progress | None
    stage: str = field(default="")
    total: int = field(default=0)
    done: int = field(default=0)
    finished: dict[str, int] = field(default_factory=dict)

    def begin(self, stage: str, total: int) -> None:
        """A stage of ``total`` at most begins."""
        self.stage, self.total, self.done = stage, total, 0
        self(0)

    def end(self) -> None:
        """The stage is over, with fewer than were foreseen perhaps."""
        self.total = self.finished[self.stage] = self.done
        self(0)

    def __call__(self, number: int) -> None:
        self.done += number
        self.total = max(self.total, self.done)
        if self.progress is not None:
            told = {"stage": self.stage, "done": self.done, "total": self.total, "finished": dict(self.finished)}
            self.progress(told)
