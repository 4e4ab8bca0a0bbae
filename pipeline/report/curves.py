"""Training curves from the lines of ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.report.charts import Series, line_chart
from schemas.errors import CorruptionError


@dataclass(frozen=True)
class Curve:
    """One chart and its heading."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class _Quantity:
    title: str
    log_y: bool
    value: Callable[[Mapping[str, Any], str], float | None]


def _metric(key: str) -> Callable[[Mapping[str, Any], str], float | None]:
    return lambda record, name: record["dictionaries"].get(name, {}).get(key)


_QUANTITIES = (
    _Quantity("Fraction of variance unexplained (training batches)", True, _metric("fvu")),
    _Quantity("Active latents of a row, L0", False, _metric("l0")),
    _Quantity("Dead share of latents", False, _metric("dead_share")),
    _Quantity("Learning rate", False, lambda record, name: record["learning_rate"].get(name)),
)


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
    """A chart for each quantity that was recorded, one line for each of ``names``."""
    curves = []
    for quantity in _QUANTITIES:
        series = []
        for colour, name in enumerate(names):
            points = [(record["tokens"], quantity.value(record, name)) for record in records]
            kept = [(float(x), float(y)) for x, y in points if y is not None]
            series.append(Series(name, colour, [x for x, _ in kept], [y for _, y in kept]))
        svg = line_chart(series, title=quantity.title, x_label="rows seen", log_y=quantity.log_y)
        if svg:
            curves.append(Curve(quantity.title, svg))
    return curves
