"""Hook points that a train job reads."""

from __future__ import annotations

from schemas.train import TrainSpec


def points_of(spec: TrainSpec) -> list[str]:
    """Sources and targets of all dictionaries, each once, in order."""
    return list(dict.fromkeys(point for one in spec.dictionaries for point in [*one.sources, *one.target_points]))
