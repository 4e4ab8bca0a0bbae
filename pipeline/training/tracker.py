"""Where metrics go: ``metrics.jsonl`` always, TensorBoard event files and Weights & Biases where the spec asks.

A resumed run drops the lines that the interrupted one wrote after its last checkpoint, so every step is in
``metrics.jsonl`` once.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.store.objects import Objects
from schemas.errors import SpecError

METRICS = "metrics.jsonl"


class Tracker(Protocol):
    """Takes one record per logged step: ``step, tokens, learning_rate, tokens_per_s, stalled_s, same_context_rate,
    same_context_rate_ideal, dictionaries``. ``stalled_s``: seconds since the last record in which
    rank 0 waited for rows. The two rates are the share of pairs of rows of the batch that are of one
    context, and what a perfect shuffle would make it."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Add a record."""
        ...

    def flush(self) -> None:
        """Make all records durable; called at each checkpoint."""
        ...

    def close(self) -> None:
        """Flush and free."""
        ...


class JsonLines:
    """``metrics.jsonl``: appended to line by line on a local disk, written anew at each checkpoint elsewhere."""

    def __init__(self, output_url: str, step: int) -> None:
        self._objects = Objects(output_url)
        lines = self._objects.read(METRICS).decode().splitlines() if self._objects.exists(METRICS) else []
        self._lines = [line for line in lines if _step(line) <= step]
        self._path = self._objects.local_path(METRICS)
        self.flush()

    def log(self, record: Mapping[str, Any]) -> None:
        """See ``Tracker``."""
        line = json.dumps(record)
        self._lines.append(line)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def flush(self) -> None:
        """See ``Tracker``."""
        self._objects.write(METRICS, "".join(line + "\n" for line in self._lines).encode())

    def close(self) -> None:
        """See ``Tracker``."""
        self.flush()


class TensorBoard:
    """Event files under ``tensorboard/``; for an output that is not local they are uploaded at the end."""

    def __init__(self, output_url: str, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._objects = Objects(output_url)
        local = self._objects.local_path("tensorboard")
        self._upload_from = None if local is not None else Path(tempfile.mkdtemp(prefix="headworks-tensorboard-"))
        self._writer = SummaryWriter(str(local or self._upload_from), purge_step=step + 1 if step else None)

    def log(self, record: Mapping[str, Any]) -> None:
        """See ``Tracker``."""
        step = record["step"]
        for key, value in scalars(record).items():
            self._writer.add_scalar(key, value, step)

    def flush(self) -> None:
        """See ``Tracker``."""
        self._writer.flush()

    def close(self) -> None:
        """See ``Tracker``."""
        self._writer.close()
        if self._upload_from is not None:
            for path in self._upload_from.iterdir():
                self._objects.write(f"tensorboard/{path.name}", path.read_bytes())


class WeightsAndBiases:
    """One W&B run, configured by its own environment variables."""

    def __init__(self, name: str) -> None:
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise SpecError(
                "trackers: 'wandb' needs the package wandb, which is not installed; "
                "install headworks[wandb] or leave it out of trackers"
            ) from error
        self._run = wandb.init(name=name, resume="allow")

    def log(self, record: Mapping[str, Any]) -> None:
        """See ``Tracker``."""
        self._run.log(scalars(record), step=record["step"])

    def flush(self) -> None:
        """W&B sends on its own."""

    def close(self) -> None:
        """See ``Tracker``."""
        self._run.finish()


class Trackers:
    """All of them; rank 0 has one, the other ranks have an empty one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    def log(self, record: Mapping[str, Any]) -> None:
        """See ``Tracker``."""
        for tracker in self._trackers:
            tracker.log(record)

    def flush(self) -> None:
        """See ``Tracker``."""
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """See ``Tracker``."""
        for tracker in self._trackers:
            tracker.close()


def open_trackers(names: Sequence[str], output_url: str, *, job: str, step: int) -> Trackers:
    """``jsonl``, ``tensorboard`` and ``wandb`` as asked for, for a run that goes on after ``step``.

    Raises:
        SpecError: a tracker needs a package that is not installed.
    """
    trackers: list[Tracker] = []
    # First the ones that can refuse, so that a refusal leaves no file behind.
    if "wandb" in names:
        trackers.append(WeightsAndBiases(job))
    if "jsonl" in names:
        trackers.append(JsonLines(output_url, step))
    if "tensorboard" in names:
        trackers.append(TensorBoard(output_url, step))
    return Trackers(trackers)


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """A record flattened: ``NAME/metric`` of each dictionary beside the figures of the run."""
    flat = {key: value for key, value in record.items() if key not in ("step", "dictionaries")}
    for name, metrics in record.get("dictionaries", {}).items():
        flat |= {f"{name}/{key}": value for key, value in metrics.items()}
    return flat


def _step(line: str) -> int:
    """The step of a line; one that a dying process left half written belongs to no step."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return 2**63 - 1
