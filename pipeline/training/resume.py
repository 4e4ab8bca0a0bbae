"""Going on from a checkpoint. Rank 0 reads it and broadcasts it, so only rank 0 needs the output folder.

Files hold whole dictionaries: a run goes on with any number of ranks, and of shards of the latents.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pipeline.training import shards
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
        _log.info("training goes on from the checkpoint of step %d", progress.step)
    device = trainers[0].dictionary.b_dec.device
    place = torch.tensor([progress.step, progress.rows, progress.epoch, progress.batch], device=device)
    world.broadcast(place)
    for trainer in trainers:
        if not int(place[0]):
            _agree(trainer, world)
            continue
        name = trainer.dictionary.spec.name
        _overwrite(trainer, checkpoints.read_state(progress.step, name) if world.rank == 0 else None, world)
        trainer.restore(int(place[0]))
    return progress if world.rank == 0 else Progress(*place.tolist())


def fall_back(trainer: DictionaryTrainer, checkpoints: Checkpoints, world: World) -> Progress | None:
    """Overwrite the state of one trainer on all ranks with its last good checkpoint's; what it is a state of.

    None where there is none; the state is then as it was. ``metrics`` are on rank 0 alone.
    """
    name = trainer.dictionary.spec.name
    progress = (checkpoints.last_good(name) if world.rank == 0 else None) or Progress()
    place = torch.tensor([progress.step, progress.rows], device=trainer.dictionary.b_dec.device)
    world.broadcast(place)
    if not int(place[0]):
        return None
    _overwrite(trainer, checkpoints.read_state(progress.step, name) if world.rank == 0 else None, world)
    trainer.restore(int(place[0]))
    return progress if world.rank == 0 else Progress(*place.tolist())


def _agree(trainer: DictionaryTrainer, world: World) -> None:
    for name, tensor in trainer.state().items():
        (world.rows if shards.is_sliced(name) else world).broadcast(tensor)


def _overwrite(trainer: DictionaryTrainer, saved: Iterator[tuple[str, torch.Tensor]] | None, world: World) -> None:
    """``saved``: what rank 0 reads, which tells the others of which tensor it has the whole."""
    state = trainer.state()
    names = list(state)
    place = torch.zeros((), dtype=torch.int64, device=trainer.dictionary.b_dec.device)
    for _ in names:
        whole: torch.Tensor | None = None
        if saved is not None:
            name, whole = next(saved)
            place.fill_(names.index(name))
        world.broadcast(place)
        name = names[int(place)]
        if shards.is_sliced(name):
            shards.scatter(whole, state[name], trainer.dictionary.spec.num_latents, world)
        else:
            if whole is not None:
                state[name].copy_(whole)
            world.broadcast(state[name])
