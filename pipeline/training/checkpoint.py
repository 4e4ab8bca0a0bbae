"""Checkpoints: everything that the next step depends on, so that a resumed run is the uninterrupted one, bit by bit.

    checkpoints/STEP/NAME.safetensors     weights, Adam's moments, counters of dead latents; one per dictionary
    checkpoints/STEP/checkpoint.json      written last: steps, rows, place in the feed, identity, digests of the files

A checkpoint exists when its JSON does. That holds on a local disk (every object is written whole, under another name,
then renamed) and on an object store alike, which has no rename. The last two are kept, and of a dictionary whose error
looks bad in those the last one in which it did not.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
import torch

from pipeline.store.objects import Objects
from schemas.errors import CorruptionError

KEEP = 2
_COMMIT = "checkpoint.json"


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int = 0
    """Optimiser steps taken."""
    rows: int = 0
    """Rows seen, repeats counted."""
    epoch: int = 0
    """Where the feed goes on."""
    batch: int = 0
    """Batches of that epoch which are behind."""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """Figures of the last step, dictionary name -> metric -> value."""


class Checkpoints:
    """The checkpoints of one output folder; only rank 0 has one."""

    def __init__(self, output_url: str) -> None:
        self.url = output_url
        self._objects = Objects(output_url).at("checkpoints")

    def steps(self) -> list[int]:
        """Steps of which a whole checkpoint exists, ascending."""
        matches = (re.fullmatch(rf"(\d+)/{re.escape(_COMMIT)}", key) for key in self._objects.list())
        return sorted(int(match[1]) for match in matches if match)

    def write(
        self,
        progress: Progress,
        identity: Mapping[str, Any],
        states: Iterable[tuple[str, Mapping[str, torch.Tensor]]],
        suspect: Collection[str] = (),
    ) -> None:
        """Write one and drop those that nobody needs any more.

        ``states``: dictionary name and whole ``DictionaryTrainer.state()``, of which one is held at a time.
        ``suspect``: dictionaries that may be diverging.
        """
        folder = f"{progress.step:09d}"
        digests = {}
        for name, tensors in states:
            data = safetensors.torch.save({key: value.cpu().contiguous() for key, value in tensors.items()})
            digests[name] = hashlib.sha256(data).hexdigest()
            self._objects.write(f"{folder}/{name}.safetensors", data)
        record = {
            "format": 1, "progress": asdict(progress), "identity": dict(identity), "sha256": digests,
            "suspect": sorted(suspect),
        }  # fmt: skip
        self._objects.write(f"{folder}/{_COMMIT}", (json.dumps(record, indent=1) + "\n").encode())
        self._prune()

    def read_record(self, step: int) -> tuple[Progress, dict[str, Any]]:
        """Progress and identity of the checkpoint of ``step``."""
        record = self._record(step)
        return Progress(**record["progress"]), record["identity"]

    def last_good(self, name: str) -> Progress | None:
        """Where the dictionary was last well, of the checkpoints that are there."""
        for step in reversed(self.steps()):
            if name not in self._record(step)["suspect"]:
                return self.read_record(step)[0]
        return None

    def read_state(self, step: int, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one dictionary, on the CPU.

        Raises:
            CorruptionError: the file is not the one that the checkpoint committed.
        """
        key = f"{step:09d}/{name}.safetensors"
        data = self._objects.read(key)
        digest, expected = hashlib.sha256(data).hexdigest(), self._record(step)["sha256"][name]
        if digest != expected:
            raise CorruptionError(
                f"{self._objects.url}/{key} has SHA-256 {digest}, the checkpoint committed {expected}: delete "
                f"the folder {step:09d} to resume from the checkpoint before it"
            )
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
        return tensors

    def _record(self, step: int) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self._objects.read(f"{step:09d}/{_COMMIT}"))
        if record["format"] != 1:
            raise CorruptionError(
                f"{self._objects.url}/{step:09d}: checkpoint format {record['format']}, this version reads 1"
            )
        return record

    def _needed(self) -> Iterator[int]:
        """The last steps, and before them the last at which those dictionaries were well that no longer are."""
        steps = self.steps()
        yield from steps[-KEEP:]
        bad = set.intersection(*(set(self._record(step)["suspect"]) for step in steps[-KEEP:]))
        for step in reversed(steps[:-KEEP]):
            if not bad:
                return
            well = bad - set(self._record(step)["suspect"])
            if well:
                yield step
            bad -= well

    def _prune(self) -> None:
        kept = {f"{step:09d}" for step in self._needed()}
        doomed = [key for key in self._objects.list() if key.split("/")[0] not in kept]
        # The commit goes first: a checkpoint that lost a file must not look whole.
        for key in sorted(doomed, key=lambda key: not key.endswith(_COMMIT)):
            self._objects.delete(key)
