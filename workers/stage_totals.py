"""Where the time of a collection went, over all its workers, for the summary and the line at the end of the job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.collection.seconds import added, binding
from pipeline.store.objects import Objects
from workers.collector import Receipt
from workers.decisions import Decision, Event, UnitCommitted

_STAGES = ("read", "forward", "copy", "encode", "write", "commit")


@dataclass
class StageTotals:
    """Adds up the seconds of every unit that is committed. Final; an observer of the execution."""

    seconds: dict[str, float] = field(default_factory=dict)

    def note(self, event: Event, answer: Any = None) -> None:
        """What happened, with the answer of a call that succeeded."""
        match event, answer:
            case UnitCommitted(), Receipt():
                self.seconds = added([self.seconds, answer.seconds])
            case _:
                pass

    def decided(self, decision: Decision) -> None:
        """Nothing to count."""

    @property
    def summary(self) -> dict[str, Any]:
        """``seconds`` and ``stalls`` by stage, ``shares`` of the time in which each resource was in use, and ``binds``,
        the one that the others waited for."""
        found = binding(self.seconds)
        return {
            "seconds": {stage: round(self.seconds.get(stage, 0.0), 3) for stage in _STAGES},
            "stalls": {
                name.removeprefix("stall_"): round(seconds, 3)
                for name, seconds in self.seconds.items()
                if name.startswith("stall_")
            },
            "shares": found.shares,
            "binds": found.binds,
        }

    def words(self, output: str) -> str:
        """What binds, for the user of the store at ``output``; empty where nothing was computed."""
        return binding(self.seconds).words("the disk" if Objects(output).is_local else "the network")
