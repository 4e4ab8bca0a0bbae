"""What Headworks tells Prometheus, through Ray: every series by name, and the three ways to record one.

Ray's agent on each node serves the numbers of that node's processes, with ``ray_`` before their names and ``_total``
behind those of counters. Where no Ray runs, recording changes nothing and costs a microsecond. Tags have few values (a
job, a store, a stage, a cause): never a unit, a row or a process. The tag of a job is ``job_name``, since Prometheus
uses ``job`` for what it scrapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ray.util import metrics

from pipeline.logs import redacted

PREFIX = "ray_"


@dataclass(frozen=True)
class Series:
    """One metric: its name without what Ray and Prometheus add, and the tags that it must be recorded with."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    tags: tuple[str, ...]
    boundaries: tuple[float, ...] = ()
    """Upper ends of a histogram's buckets."""

    @property
    def exported_names(self) -> tuple[str, ...]:
        """The names that Prometheus sees."""
        endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[self.kind]
        return tuple(f"{PREFIX}{self.name}{ending}" for ending in endings)

    def add(self, amount: float, **tags: str) -> None:
        """Raise a counter; by nothing where ``amount`` is 0, which Ray refuses."""
        assert self.kind == "counter"
        if amount > 0:
            _recorder(self).inc(amount, tags=_checked(self, tags))

    def set(self, value: float, **tags: str) -> None:
        """Set a gauge, which keeps its value until this process ends."""
        assert self.kind == "gauge"
        _recorder(self).set(value, tags=_checked(self, tags))

    def observe(self, value: float, **tags: str) -> None:
        """Add a value to a histogram."""
        assert self.kind == "histogram"
        _recorder(self).observe(value, tags=_checked(self, tags))


_STORE = ("job_name", "store")
_DICTIONARY = ("job_name", "dictionary")
_SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)

TOKENS = Series("headworks_tokens", "counter", "Token rows committed to the store.", _STORE)
BYTES = Series("headworks_bytes", "counter", "Bytes of objects committed to the store, after compression.", _STORE)
UNITS = Series("headworks_units", "counter", "Units committed to the store.", _STORE)
UNIT_SECONDS = Series(
    "headworks_unit_seconds", "histogram", "Seconds from the begin of a unit to its commit.", _STORE, _SECONDS
)
STAGE_SECONDS = Series(
    "headworks_stage_seconds", "counter", "Seconds that workers were busy in a stage of collecting.", (*_STORE, "stage")
)
STALL_SECONDS = Series(
    "headworks_stall_seconds", "counter", "Seconds that a stage waited for its neighbour.", (*_STORE, "stage")
)
LOAD_SECONDS = Series("headworks_load_seconds", "histogram", "Seconds to load the model.", _STORE, _SECONDS)
RETRIES = Series("headworks_retries", "counter", "Units that went back to the queue.", (*_STORE, "cause"))
WORKER_DEATHS = Series("headworks_worker_deaths", "counter", "Workers that died or were preempted.", (*_STORE, "cause"))
QUEUE = Series(
    "headworks_queue_units", "gauge", "Units by state: waiting, leased, done, set_aside.", (*_STORE, "state")
)
WORKERS = Series("headworks_workers", "gauge", "Model replicas by state: loading, ready.", (*_STORE, "state"))
MODEL_FLOP = Series(
    "headworks_model_flop", "counter", "Floating-point operations of the model for the rows committed.", _STORE
)
PEAK_FLOP_PER_S = Series(
    "headworks_peak_flop_per_s",
    "gauge",
    "Floating-point operations per second that the devices of all ready replicas could do.",
    _STORE,
)
FLOP_UTILISATION = Series(
    "headworks_flop_utilisation",
    "gauge",
    "Model FLOP utilisation over the last units: operations of the model per second over the devices' peak.",
    _STORE,
)

TRAIN_ROWS = Series("headworks_train_rows", "counter", "Rows trained on, over all ranks.", ("job_name",))
TRAIN_STEP = Series("headworks_train_step", "gauge", "Steps done.", ("job_name",))
TRAIN_STEPS = Series("headworks_train_steps_planned", "gauge", "Steps that the job will do.", ("job_name",))
TRAIN_ROWS_PER_S = Series(
    "headworks_train_rows_per_s", "gauge", "Rows per second since the last record.", ("job_name",)
)
TRAIN_STALL_SECONDS = Series(
    "headworks_train_stall_seconds", "counter", "Seconds that rank 0 waited for rows.", ("job_name",)
)
TRAIN_RESTARTS = Series("headworks_train_restarts", "counter", "Worker groups started again.", ("job_name",))
TRAIN_LOSS = Series("headworks_train_loss", "gauge", "Loss of the last batch.", _DICTIONARY)
TRAIN_FVU = Series("headworks_train_fvu", "gauge", "Fraction of variance unexplained of the last batch.", _DICTIONARY)
TRAIN_L0 = Series("headworks_train_l0", "gauge", "Active latents per row of the last batch.", _DICTIONARY)
TRAIN_DEAD_SHARE = Series("headworks_train_dead_share", "gauge", "Share of latents that are dead.", _DICTIONARY)

JOBS = Series("headworks_jobs", "counter", "Jobs that ended, by how they ended.", ("job_name", "kind", "status"))


def all_series() -> dict[str, Series]:
    """Every series by its name."""
    return {each.name: each for each in globals().values() if isinstance(each, Series)}


@cache
def _recorder(series: Series) -> Any:
    """Ray's object of the series, one for each process."""
    match series.kind:
        case "counter":
            return metrics.Counter(series.name, series.description, series.tags)
        case "gauge":
            return metrics.Gauge(series.name, series.description, series.tags)
        case "histogram":
            return metrics.Histogram(series.name, series.description, list(series.boundaries), series.tags)


def _checked(series: Series, tags: dict[str, str]) -> dict[str, str]:
    assert set(tags) == set(series.tags), f"{series.name} is recorded with the tags {series.tags}, got {tuple(tags)}"
    return {name: redacted(value) for name, value in tags.items()}
