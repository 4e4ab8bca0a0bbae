"""What training tells Prometheus: the records that rank 0 logs, as gauges. Runs in the process of rank 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers import metrics
from workers.metrics import Series

_BY_DICTIONARY: dict[str, Series] = {
    "loss": metrics.TRAIN_LOSS,
    "fvu": metrics.TRAIN_FVU,
    "l0": metrics.TRAIN_L0,
    "dead_share": metrics.TRAIN_DEAD_SHARE,
}


class _StepMetrics:
    """How far a job is that trains in steps."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._rows = -1

    def _progress(self, record: Mapping[str, Any]) -> None:
        rows = int(record["tokens"])
        if self._rows >= 0:
            metrics.TRAIN_ROWS.add(rows - self._rows, job_name=self._job)
        self._rows = rows
        metrics.TRAIN_STEP.set(record["step"], job_name=self._job)
        metrics.TRAIN_STEPS.set(record["num_steps"], job_name=self._job)
        metrics.TRAIN_ROWS_PER_S.set(record["tokens_per_s"], job_name=self._job)


class TrainingMetrics(_StepMetrics):
    """Of one train job. Final."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Take a record of ``metrics.jsonl`` with ``num_steps``. The rows before the first one are not counted: a run
        that goes on has trained on them in an earlier process."""
        self._progress(record)
        metrics.TRAIN_STALL_SECONDS.add(record["stalled_s"], job_name=self._job)
        for name, figures in record["dictionaries"].items():
            for figure, series in _BY_DICTIONARY.items():
                if figure in figures:
                    series.set(figures[figure], job_name=self._job, dictionary=name)


class ModelMetrics(_StepMetrics):
    """Of one train_model job. Final."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Take a record of ``metrics.jsonl`` with ``num_steps``; see ``TrainingMetrics.record``."""
        self._progress(record)
        if "loss" in record:
            metrics.TRAIN_LOSS.set(record["loss"], job_name=self._job, dictionary="")
