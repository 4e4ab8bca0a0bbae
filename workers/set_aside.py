"""The record of the units that a run gave up, in a file beside the summary, and the error that names them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.store.objects import Objects
from schemas.errors import JobError
from schemas.set_aside import SetAsideRecord, SetAsideUnit
from workers.decisions import SetAside

_NAMED = 5
"""How many units the error names; the file has all."""


@dataclass
class GivenUp:
    """The units that one run of a job has set aside so far."""

    job: str
    output: str
    units: list[SetAsideUnit] = field(default_factory=list)

    @property
    def place(self) -> tuple[str, str]:
        """``(folder, file name)``."""
        folder, _, name = self.output.rstrip("/").rpartition("/")
        return folder, f"{name}.set_aside.json"

    def add(self, found: Iterable[SetAside], what: Callable[[int], str]) -> None:
        """Keep what a controller has set aside; ``what`` says what a unit holds."""
        self.units += [
            SetAsideUnit(
                unit=one.unit,
                what=what(one.unit),
                errors=one.errors,
                deaths=one.deaths,
                cause=one.cause,
                traceback=one.traceback,
            )
            for one in found
        ]

    def require_none(self) -> None:
        """Raises JobError that names the units, where there are any."""
        if not self.units:
            return
        named = "\n".join(f"  unit {one.unit} ({one.what}): {_count(one)}, {one.cause}" for one in self.units[:_NAMED])
        more = f"\n  and {len(self.units) - _NAMED} more" if len(self.units) > _NAMED else ""
        raise JobError(
            f"{self.job}: {len(self.units)} units were set aside, everything else is committed:\n{named}{more}\n"
            f"The tracebacks are in {'/'.join(self.place)}. Mend the cause and run again: only these are computed."
        )


def _count(one: SetAsideUnit) -> str:
    return f"{one.errors} errors" if not one.deaths else f"{one.errors} errors and {one.deaths} deaths of workers"


@contextmanager
def given_up(job: str, output: str) -> Iterator[GivenUp]:
    """The file follows what the block has set aside: written where that is something, removed where it is nothing."""
    units = GivenUp(job, output)
    try:
        yield units
    finally:
        folder, name = units.place
        objects = Objects(folder)
        if units.units:
            record = SetAsideRecord(job=job, output=output, units=units.units)
            objects.write(name, (record.model_dump_json(indent=1) + "\n").encode())
        elif objects.exists(name):
            objects.delete(name)
