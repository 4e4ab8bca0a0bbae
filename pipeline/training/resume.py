"""Going on from a checkpoint. Rank 0 reads it and broadcasts it, so only rank 0 needs the output folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.training.checkpoint import Checkpoints, Progress
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import World
from schemas.fingerprint import require_equal

_log = logging.getLogger(__name__)


def require_same_run(ours: dict[str, Any], theirs: dict[str, Any], output_url: str) -> None:
    """Refuse an output folder of another run.

    Raises:
        MismatchError: naming the fields that differ.
    """
    require_equal(
        ours,
        theirs,
        where=f"the training in {output_url}",
        remedy="give another output, or delete that folder to train anew",
    )


def restore(
    trainers: Sequence[DictionaryTrainer], checkpoints: Checkpoints, identity: dict[str, Any], world: World
) -> Progress:
    """Overwrite the state of all trainers on all ranks with the last checkpoint's; ``Progress()`` without one.

    Without a checkpoint rank 0's starting weights are broadcast: ranks on unlike hardware start from the same bits.

    Raises:
        MismatchError: the checkpoint belongs to another run.
    """
    progress = Progress()
    if world.rank == 0 and (steps := checkpoints.steps()):
        progress, theirs = checkpoints.read_record(steps[-1])
        require_same_run(identity, theirs, checkpoints.url)
        for trainer in trainers:
            _overwrite(trainer, checkpoints.read_state(progress.step, trainer.dictionary.spec.name))
        _log.info("training goes on from the checkpoint of step %d", progress.step)
    device = trainers[0].dictionary.b_dec.device
    place = torch.tensor([progress.step, progress.rows, progress.epoch, progress.batch], device=device)
    world.broadcast(place)
    for trainer in trainers:
        for tensor in trainer.state().values():
            world.broadcast(tensor)
        trainer.restore(int(place[0]))
    return progress if world.rank == 0 else Progress(*place.tolist())


def _overwrite(trainer: DictionaryTrainer, saved: dict[str, torch.Tensor]) -> None:
    for name, tensor in trainer.state().items():
        tensor.copy_(saved[name])
