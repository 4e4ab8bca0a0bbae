"""What a job's output says of its course: where the time of a collection goes, and the curves of trainings.

Both are written by the job while it runs, on the storage of its output: ``events.jsonl`` beside the summary
(``workers.events``), which has the seconds of every unit, and ``metrics.jsonl`` of each training. Only numbers and
names are taken from them. Of long files the end is read.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.collection.seconds import added, binding
from pipeline.store.objects import Objects
from schemas.errors import MissingError
from schemas.pipeline import AnyJob, PipelineSpec
from workers.events import events_name, summary_place

RECENT_UNITS = 256
"""The stages are those of so many units, the last ones of each store."""
POINTS = 240
"""Of a curve, evenly spread over its steps."""
_READ_BYTES = 8 * 2**20
_PARTS = 64
"""Files of events on storage without appending, the newest."""
_METRICS = "metrics.jsonl"
_CURVES = ("fvu", "l0", "dead_share", "loss", "held_out_loss")
_TRAININGS = ("train", "train_model")
_STALL = "stall_"
_TOTAL = "total"


class _View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Stages(_View):
    """Where the time of the last units of one store went."""

    store: str
    """Its URL."""
    units: int
    """How many units these are."""
    busy_s: dict[str, float]
    """Stage -> seconds that workers were busy in it, of all workers together."""
    stalls_s: dict[str, float]
    """Stage -> seconds that it waited for its neighbour."""
    binds: str
    """What the others waited for: ``compute``, ``copy``, ``encode``, ``storage``, ``tokens`` or ``units``."""


class Curve(_View):
    """What the training of one dictionary, or of a model, has logged."""

    job: str
    """The training's name."""
    dictionary: str
    """The dictionary's name; empty of a model."""
    steps: list[int]
    """Those of the points."""
    values: dict[str, list[float | None]]
    """``fvu``, ``l0``, ``dead_share``, ``loss``, ``held_out_loss`` -> a value for each step, null where none is."""


class Figures(_View):
    """The course of one job."""

    stages: list[Stages]
    """Of its collections and shuffles, while they run and after."""
    curves: list[Curve]
    """Of its trainings."""
    rows_per_s: dict[str, float]
    """Train job -> rows a second since its last record."""
    stalled_share: dict[str, float]
    """Train job -> share of the time of the last records in which rank 0 waited for rows."""


def read_figures(job: AnyJob, require_readable: Callable[[str], None]) -> Figures:
    """Of a job, from whatever of it there is; ``require_readable`` is asked for each file and raises ForbiddenError."""
    found = Figures(stages=_stages(job, require_readable), curves=[], rows_per_s={}, stalled_share={})
    for each in job.resolved() if isinstance(job, PipelineSpec) else [job]:
        if each.kind in _TRAININGS:
            records = [*_records(Objects(each.output), _METRICS, require_readable)]
            found.curves += _curves(each.name, records)
            if records:
                found.rows_per_s[each.name] = _number(records[-1].get("tokens_per_s")) or 0.0
                found.stalled_share[each.name] = _stalled_share(records[-32:])
    return found


def _stages(job: AnyJob, require_readable: Callable[[str], None]) -> list[Stages]:
    folder, summary = summary_place(job)
    place, name = Objects(folder), events_name(summary)
    units: defaultdict[str, deque[dict[str, float]]] = defaultdict(lambda: deque(maxlen=RECENT_UNITS))
    for key in _files(place, name):
        for event in _records(place, key, require_readable):
            if event.get("event") == "unit.committed" and isinstance(event.get("seconds"), dict):
                seconds = {str(stage): _number(value) or 0.0 for stage, value in event["seconds"].items()}
                units[str(event.get("store"))].append(seconds)
    return [_stages_of(store, list(several)) for store, several in units.items()]


def _stages_of(store: str, units: list[dict[str, float]]) -> Stages:
    total = {name: round(value, 3) for name, value in added(units).items() if name != _TOTAL}
    stalls = {name.removeprefix(_STALL): value for name, value in total.items() if name.startswith(_STALL)}
    busy = {name: value for name, value in total.items() if not name.startswith(_STALL)}
    return Stages(store=store, units=len(units), busy_s=busy, stalls_s=stalls, binds=binding(total).binds)


def _files(place: Objects, name: str) -> list[str]:
    """The file of events, or its parts in order of time: their names begin with it."""
    if place.local_path(name) is not None:
        return [name]
    stem = f"{name.removesuffix('jsonl')}"
    files, _ = place.children()
    return sorted(key for key in files if key.startswith(stem) and key.endswith(".jsonl"))[-_PARTS:]


def _records(place: Objects, key: str, require_readable: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The objects of the last lines; what is no JSON object, as a line half written, is left out."""
    require_readable(f"{place.url.rstrip('/')}/{key}")
    try:
        size = place.size(key)
        content = place.read_range(key, max(0, size - _READ_BYTES), size)
    except MissingError:
        return
    lines = content.decode("utf-8", errors="replace").split("\n")
    for line in lines[1:] if size > _READ_BYTES else lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record


def _curves(job: str, records: list[dict[str, Any]]) -> list[Curve]:
    records = [each for each in records if _number(each.get("step")) is not None]
    last, count = len(records) - 1, min(len(records), POINTS)
    points = [records[place * last // max(1, count - 1)] for place in range(count)]
    names = dict.fromkeys(str(name) for each in points for name in _trained(each))
    steps = [int(each["step"]) for each in points]
    curves = []
    for name in names:
        values = {key: [_value(each, name, key) for each in points] for key in _CURVES}
        logged = {key: several for key, several in values.items() if any(value is not None for value in several)}
        curves.append(Curve(job=job, dictionary=name, steps=steps, values=logged))
    return curves


def _trained(record: dict[str, Any]) -> dict[str, Any]:
    """Name of each dictionary -> its figures; of a model's record the record itself under the empty name."""
    found = record.get("dictionaries", {"": record})
    return found if isinstance(found, dict) else {}


def _value(record: dict[str, Any], name: str, key: str) -> float | None:
    figures = _trained(record).get(name)
    return _number(figures.get(key)) if isinstance(figures, dict) else None


def _stalled_share(records: list[dict[str, Any]]) -> float:
    """``tokens_per_s`` of a record gives the seconds that it stands for."""
    stalled = passed = 0.0
    for before, each in pairwise(records):
        rate, rows = _number(each.get("tokens_per_s")), _number(each.get("tokens"))
        if rate and rows is not None:
            passed += (rows - (_number(before.get("tokens")) or 0.0)) / rate
            stalled += _number(each.get("stalled_s")) or 0.0
    return round(min(1.0, stalled / passed), 4) if passed > 0 else 0.0


def _number(value: object) -> float | None:
    """A finite number of JSON."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < float("inf") else None  # type: ignore[arg-type]
