"""What a job's log says of its progress: the lines of ``workers.progress`` and ``workers.live_notes``, read back.

The log is the one thing of a running job that reaches the service from every cluster, whatever storage the job writes
to. Figures have the three digits that the lines have.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace

_LINE = re.compile(
    r"(?P<name>.{1,120}?): (?P<done>[\d.]+[kMGT]?)(?:/(?P<total>[\d.]+[kMGT]?))? (?P<unit>[A-Za-z]{1,16})"
    r"(?P<more>(?:, [^,]{1,40})*)"
)
_RATE = re.compile(r"([\d.]+[kMGT]?) ([A-Za-z]{1,16})/s")
_BYTES = re.compile(r"([\d.]+)([kMGT]?)B/s")
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d\d) left")
_WAITED = re.compile(r"(?P<job>.{1,120}?): (?P<words>waited for .{1,120} of the last \d+ s)")
_WAITS_NO_MORE = re.compile(r"(?P<job>.{1,120}?): waits for .{1,120} no more")
_SIZES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_LONGEST_LINE = 2000
_MOST_TASKS = 16
"""Those that were heard of last; a job has a few."""


@dataclass(frozen=True)
class TaskFacts:
    """How far one task of a job is."""

    name: str
    done: float
    total: float | None
    """None: not known."""
    unit: str
    """``tokens``, ``rows``, ``steps``, ..."""
    rate_per_s: float | None = None
    """Units each second of this run."""
    bytes_per_s: float | None = None
    """Written."""
    left_s: float | None = None
    """Until it is done, at this rate."""
    waits: str = ""
    """What it mostly waits for, as ``waited for rows 25 of the last 30 s``."""


@dataclass
class LogFacts:
    """Of a log that is read from its beginning, piece by piece."""

    _tasks: dict[str, TaskFacts] = field(default_factory=dict)
    _waits: dict[str, str] = field(default_factory=dict)
    _rest: str = ""

    def add(self, text: str) -> None:
        """The piece that follows."""
        *lines, rest = (self._rest + text).split("\n")
        self._rest = rest[:_LONGEST_LINE]
        for line in lines:
            if len(line) < _LONGEST_LINE:
                self._read(line.rstrip("\r"))

    @property
    def tasks(self) -> list[TaskFacts]:
        """The one that was heard of last comes last."""
        newest = {name.split(": ")[0]: name for name in self._tasks}
        return [
            replace(task, waits=self._waits.get(job, "")) if newest[job := name.split(": ")[0]] == name else task
            for name, task in self._tasks.items()
        ]

    def _read(self, line: str) -> None:
        said = _message(line) if line.startswith("{") else line
        if found := _LINE.fullmatch(said):
            task = _task(found)
            self._tasks.pop(task.name, None)
            self._tasks[task.name] = task
            if len(self._tasks) > _MOST_TASKS:
                del self._tasks[next(iter(self._tasks))]
        elif found := _WAITED.fullmatch(said):
            self._waits = {found["job"]: found["words"], **dict(list(self._waits.items())[-_MOST_TASKS:])}
        elif found := _WAITS_NO_MORE.fullmatch(said):
            self._waits.pop(found["job"], None)


def _message(line: str) -> str:
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return str(facts.get("message", "")) if isinstance(facts, dict) else ""


def _task(found: re.Match[str]) -> TaskFacts:
    more = found["more"].removeprefix(", ").split(", ")
    rates = [rate[1] for part in more if (rate := _RATE.fullmatch(part)) and rate[2] == found["unit"]]
    sizes = [rate[1] + rate[2] for part in more if (rate := _BYTES.fullmatch(part))]
    clocks = [clock for part in more if (clock := _CLOCK.fullmatch(part))]
    return TaskFacts(
        name=found["name"],
        done=_amount(found["done"]),
        total=_amount(found["total"]) if found["total"] else None,
        unit=found["unit"],
        rate_per_s=_amount(rates[0]) if rates else None,
        bytes_per_s=_amount(sizes[0]) if sizes else None,
        left_s=sum(int(part or 0) * size for part, size in zip(clocks[0].groups(), (3600, 60, 1), strict=True))
        if clocks
        else None,
    )


def _amount(text: str) -> float:
    """``1.23M`` -> 1230000. What is no number, as ``1.2.3``, is 0."""
    prefix = text[-1] if text[-1] in _SIZES else ""
    try:
        return float(text.removesuffix(prefix)) * _SIZES[prefix]
    except ValueError:
        return 0.0
