"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from schemas.train_model import ModelSchedule


def learning_rate_factor(schedule: ModelSchedule, step: int, num_steps: int) -> float:
    """Of the highest rate, at ``step`` (0-based): linear warm-up, which the first step is part of, then the decay,
    which the last step is not yet at the end of."""
    warmup = schedule.warmup_fraction * num_steps
    if step + 1 < warmup:
        return (step + 1) / warmup
    if schedule.decay == "none":
        return 1.0
    done = (step - warmup) / max(num_steps - warmup, 1.0)
    left = 1 - done if schedule.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return schedule.final_share + (1 - schedule.final_share) * min(1.0, left)
