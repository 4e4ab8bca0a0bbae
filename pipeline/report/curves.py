"""Training curves from the lines of ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.report.charts import NEUTRAL, Series, line_chart
from schemas.errors import CorruptionError


@dataclass(frozen=True)
class Curve:
    """One chart and its heading."""

    title: str
    svg: Markup


_METRICS = (
    ("fvu", "Fraction of variance unexplained (training batches)", True),
    ("l0", "Active latents of a row, L0", False),
    ("dead_share", "Dead share of latents", False),
)
"""Key in ``metrics.jsonl``, heading, logarithmic."""
_X_LABEL = "rows seen"


def read_metrics(content: bytes, where: str) -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl``.

    Raises:
        CorruptionError: a line is not JSON; the message names it.
    """
    records = []
    for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise CorruptionError(f"{where}, line {number}: expected a JSON object, got {line[:80]!r}") from error
    return records


def training_curves(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Curve]:
    """A chart for each quantity that was recorded, one line for each of ``names``, and one of the learning rate."""
    curves = []
    for key, title, log_y in _METRICS:
        series = [_series(records, name, colour, key) for colour, name in enumerate(names)]
        curves.append(Curve(title, line_chart(series, title=title, x_label=_X_LABEL, log_y=log_y)))
    title = "Learning rate (the largest of all dictionaries)"
    rates = Series(title, NEUTRAL, [one["tokens"] for one in records], [one["learning_rate"] for one in records])
    curves.append(Curve(title, line_chart([rates], title=title, x_label=_X_LABEL)))
    return [curve for curve in curves if curve.svg]


def _series(records: Sequence[Mapping[str, Any]], name: str, colour: int, key: str) -> Series:
    points = [
        (one["tokens"], one["dictionaries"][name][key]) for one in records if key in one["dictionaries"].get(name, {})
    ]
    return Series(name, colour, [x for x, _ in points], [y for _, y in points])
