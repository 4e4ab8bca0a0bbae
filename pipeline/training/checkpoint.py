"""Checkpoints: everything that the next step depends on, so that a resumed run is the uninterrupted one, bit by bit.

    checkpoints/STEP/NAME.safetensors     weights, moments, counters of dead latents of a dictionary; of one that is
                                          larger than ``PART_BYTES`` the first part, NAME/1.safetensors the next, ...
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
PART_BYTES = 2**30
"""A file ends with the tensor that reaches this: what is held besides the tensors that are trained is one file."""
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
        states: Iterable[tuple[str, Iterable[tuple[str, torch.Tensor]]]],
        suspect: Collection[str] = (),
    ) -> None:
        """Write one and drop those that nobody needs any more.

        ``states``: dictionary name, and names and whole tensors of ``DictionaryTrainer.state()``, made as they are
        asked for.
        ``suspect``: dictionaries that may be diverging.
        """
        folder = f"{progress.step:09d}"
        digests: dict[str, list[str]] = {}
        for name, tensors in states:
            digests[name] = []
            for part in _parts(tensors):
                data = safetensors.torch.save(part)
                self._objects.write(_key(progress.step, name, len(digests[name])), data)
                digests[name].append(hashlib.sha256(data).hexdigest())
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

    def read_state(self, step: int, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors of one dictionary, on the CPU, file by file; within one in any order.

        Raises:
            CorruptionError: a file is not the one that the checkpoint committed.
        """
        for part, expected in enumerate(self._record(step)["sha256"][name]):
            key = _key(step, name, part)
            data = self._objects.read(key)
            digest = hashlib.sha256(data).hexdigest()
            if digest != expected:
                raise CorruptionError(
                    f"{self._objects.url}/{key} has SHA-256 {digest}, the checkpoint committed {expected}: delete "
                    f"the folder {step:09d} to resume from the checkpoint before it"
                )
            yield from safetensors.torch.load(data).items()

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


def _key(step: int, name: str, part: int) -> str:
    return f"{step:09d}/{name}{f'/{part}' if part else ''}.safetensors"


def _parts(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    """On the CPU, as many together as make up ``PART_BYTES``."""
    part: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        part[name] = tensor.cpu().contiguous()
        if sum(one.nbytes for one in part.values()) >= PART_BYTES:
            yield part
            part = {}
    if part:
        yield part
