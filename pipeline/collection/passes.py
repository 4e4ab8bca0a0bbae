"""Which passes a job has to carry out, given the store's log: a pure function, decided anew when others have added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.store.log import Event, completion, opened_passes
from schemas.store import PassRecord


@dataclass(frozen=True)
class PassPlan:
    """What one job must find complete in the end."""

    begun: tuple[PassRecord, ...]
    """Passes that were opened already, by an earlier run or by another job, to be completed over ``num_rows`` rows."""
    missing: tuple[str, ...]
    """Hook points that no pass has: they become one new pass."""
    num_rows: int
    """Rows of every hook point then."""


def plan_passes(events: Sequence[Event], hook_points: Sequence[str], num_rows: int) -> PassPlan:
    """The plan of a job that asks for ``hook_points`` over ``num_rows`` rows.

    A store's hook points have their rows in common. So a job with more rows than the store shows collects them of
    every hook point that it shows; and hook points that were begun, but are not shown, are collected of as many rows
    as another job has given the store meanwhile.
    """
    opened, shown = opened_passes(events), completion(events)
    begun = [pass_ for pass_, one in opened.items() if {*one.hook_points} & {*hook_points}]
    held = {hook for pass_ in begun for hook in opened[pass_].hook_points}
    if shown and {*begun} - {*shown.passes}:
        num_rows = max(num_rows, shown.num_rows)
    if shown and num_rows > shown.num_rows:
        begun += [pass_ for pass_ in shown.passes if pass_ not in begun]
    missing = tuple(hook for hook in hook_points if hook not in held)
    return PassPlan(tuple(opened[pass_] for pass_ in begun), missing, num_rows)
