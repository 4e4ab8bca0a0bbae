"""What decides the bytes of a training run: the store and the part of the spec that enters the arithmetic."""

from __future__ import annotations

from typing import Any

from pipeline.store.arriving import STATISTICS_ROWS
from schemas.train import TrainSpec

_NOT_IDENTITY = {
    "name", "store", "feed", "output", "workers", "trackers", "log_every_steps", "checkpoint_every_steps", "sweep",
    "held_out",
}  # fmt: skip
# ``store`` is a place; the fingerprint and the number of rows of what lies there stand for it. ``feed`` decides the
# order and the statistics, but in one way only: a run that began live may go on from the store.


def identity(spec: TrainSpec, *, store_fingerprint: str, num_rows: int) -> dict[str, Any]:
    """Facts that two runs must share for one to continue or to reuse the other."""
    facts = spec.model_dump(mode="json", exclude=_NOT_IDENTITY)
    found = {"spec": facts, "store_fingerprint": store_fingerprint, "num_rows": num_rows}
    if spec.feed != "stored":
        found["arriving"] = {"first_epoch": "in order", "statistics_rows": STATISTICS_ROWS}
    return found
