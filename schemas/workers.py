"""What a job forgives its workers. Never part of a fingerprint."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from schemas.fields import Spec


class WorkerLimits(Spec):
    """Leases and budgets, the same of every job whose work is cut into units."""

    units_in_flight: PositiveInt = 2
    """Units leased to one worker at a time. Of a collection two are under way, one computed while the one before it is
    written, and the rest waits; of other jobs one runs."""
    lease_timeout_s: PositiveFloat = 900
    """Seconds in which a worker that has a unit must get on with it (run a batch, write an object); one that does not
    is taken for dead and replaced. A unit may take any time."""
    max_attempts: PositiveInt = 3
    """Attempts at one unit that end in an error of the code before the unit is set aside; deaths are counted apart."""
    max_unit_deaths: PositiveInt = 3
    """Workers that may die over one unit before it is set aside."""
    max_set_aside: NonNegativeInt = 8
    """Units that may be set aside while the rest goes on; one more ends the job."""
    max_worker_deaths: NonNegativeInt = 16
    """Worker processes that may die before the job fails; those of nodes that went away, and of a unit that was set
    aside, do not count."""
    max_preemptions: NonNegativeInt = 1000
    """Workers that may be lost with their nodes before the job fails."""
