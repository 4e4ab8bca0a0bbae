"""What a circuit job will compute, as far as its fields say it."""

from __future__ import annotations

from schemas.circuit import TASKS, CircuitSpec


def circuit_note(spec: CircuitSpec) -> str:
    """How many searches there are, and of what size. Their time depends on the network, which need not exist yet."""
    tasks = len(TASKS) if isinstance(spec.tasks, str) else len(spec.tasks)
    searches = (tasks + spec.nonsense) * spec.search.number
    at_once = spec.workers.num_workers or "as many as there is room for"
    return (
        f"{searches:,} searches of {spec.mask.steps:,} steps with {2 * spec.mask.batch_pairs:,} prompts each, "
        f"{at_once} at a time; time is not planned"
    )
