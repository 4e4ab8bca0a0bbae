"""Units that a job gave up while it did the rest: what failed, as the job's output keeps it."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt

from schemas.fields import Spec


class SetAsideUnit(Spec):
    """One unit. The next run of the same job tries it again."""

    unit: NonNegativeInt
    """Index of the unit, or of the task of a shuffle."""
    what: str
    """What it holds: rows and hook points, or the pass of a shuffle."""
    errors: NonNegativeInt
    """Attempts that ended in an error of the code."""
    deaths: NonNegativeInt
    """Attempts during which the worker died."""
    cause: str
    """The last error or death."""
    traceback: str
    """Of the last error, as the worker printed it; empty where workers died without one."""


class SetAsideRecord(Spec):
    """``OUTPUT.set_aside.json``, beside the summary of the job; gone once a run has set nothing aside."""

    format: Literal[1] = 1
    """Format of this file."""
    job: str
    """Name of the job."""
    output: str
    """The store that lacks the units."""
    units: list[SetAsideUnit]
    """In the order in which they were given up."""
