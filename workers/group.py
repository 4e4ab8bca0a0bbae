"""The actors of a replica that has several processes, and where they are placed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from schemas.collect import CollectWorkers
from workers.member import RESULTS, STATES, UNITS
from workers.pulse import GROUP
from workers.replica import actor_options

Strategy = Literal["PACK", "STRICT_PACK"]
"""``PACK``: on one node if it has room. ``STRICT_PACK``: on one node."""

_WAITING_FOR_STATES = 6
"""Threads that answer a neighbour: its requests ahead, of a unit that failed there and of the next, and some more."""


@dataclass(frozen=True)
class SeveralActors:
    """A replica: actors in their order, of which the last one leads."""

    actors: list[Any]
    group: PlacementGroup
    loading: list[Any]

    def compute(self, unit: int, attempt: int) -> list[Any]:
        """Begin a unit in every actor; references of the results, the leader's first."""
        *followers, leader = self.actors
        # Handed to every actor at once and in the same order, whatever else each of them has.
        begun = [actor.begin.remote(unit, attempt, []) for actor in followers]
        results = [actor.result.remote(unit, attempt) for actor in followers]
        begun.append(leader.begin.remote(unit, attempt, results))
        return [leader.result.remote(unit, attempt), *results, *begun]

    def pulses(self) -> list[Any]:
        """Of every actor."""
        return [actor.pulse.remote() for actor in self.actors]

    def kill(self) -> None:
        """End all actors and free their places."""
        for actor in self.actors:
            ray.kill(actor, no_restart=True)
        remove_placement_group(self.group)


def start_members(
    actor_class: type[Any], name: str, limits: CollectWorkers, strategy: Strategy
) -> tuple[list[Any], PlacementGroup]:
    """Start ``processes_per_replica`` actors of ``actor_class(name, index, number, actor before)``."""
    number = limits.processes_per_replica
    assert number > 1
    needs = {"CPU": limits.cpus_per_worker} | ({"GPU": limits.gpus_per_worker} if limits.gpus_per_worker else {})
    group = placement_group([dict(needs) for _ in range(number)], strategy=strategy)
    groups = {GROUP: 1, UNITS: 1, RESULTS: limits.units_in_flight + 1, STATES: _WAITING_FOR_STATES}
    actors: list[Any] = []
    for index in range(number):
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        # Concurrency groups cannot be given to ``.options()``.
        options = {**actor_options(limits), "scheduling_strategy": place, "concurrency_groups": groups}
        before = actors[-1] if actors else None
        actors.append(ray.remote(**options)(actor_class).remote(f"{name}.{index}", index, number, before))
    return actors, group
