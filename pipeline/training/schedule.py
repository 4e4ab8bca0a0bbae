"""What changes over a run: learning rate and sparsity weight, as pure functions of the step; and how long a run is."""

from __future__ import annotations

from schemas.train import Schedule, TrainSpec


def total_rows(spec: TrainSpec, rows_per_epoch: int) -> int:
    """Rows that the run trains on, repeats counted."""
    return spec.num_tokens or max(1, round(spec.num_epochs * rows_per_epoch))


def total_steps(num_rows: int, rows_per_epoch: int, batch_rows: int) -> int:
    """Optimiser steps until at least ``num_rows`` were seen; the last batch of an epoch may be short."""
    epochs, rest = divmod(num_rows, rows_per_epoch)
    return epochs * -(-rows_per_epoch // batch_rows) + -(-rest // batch_rows)


def learning_rate_factor(schedule: Schedule, step: int, num_steps: int) -> float:
    """Factor of the peak rate at ``step`` (0-based): linear warm-up, constant, linear decay that ends above 0."""
    warmup = schedule.warmup_fraction * num_steps
    decay = schedule.decay_fraction * num_steps
    rising = (step + 1) / warmup if warmup > 0 else 1.0
    falling = (num_steps - step) / decay if decay > 0 else 1.0
    return min(1.0, rising, falling)


def ramp(fraction: float, progress: float) -> float:
    """Linear rise from 0 to 1 while ``progress`` (share of the run that is behind) goes from 0 to ``fraction``."""
    return 1.0 if fraction <= 0 else min(1.0, progress / fraction)
