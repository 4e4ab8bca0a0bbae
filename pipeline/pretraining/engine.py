"""The training engine of models: a prepared output in, snapshots and a model out, the same on one rank as on many.

Every rank calls ``pretrain`` with the same spec and its own ``World``, after ``prepare``:

  1. reuse a finished output, or go on from the last checkpoint, or start; rank 0 reads, the others get it broadcast;
  2. for each batch a step, and after the steps that the spec lists a snapshot;
  3. rank 0 logs, writes snapshots and checkpoints and in the end ``model/`` and, last, ``train_model.json``, which says
     that the output is complete.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.networks import build_network
from pipeline.pretraining.contexts import Batches, Contexts, Splits, read_contexts
from pipeline.pretraining.prepare import (
    COMPLETE,
    Prepared,
    finished,
    open_table,
    output_folder,
    read_identity,
    tokenizer_folder,
)
from pipeline.pretraining.schedule import learning_rate_factor
from pipeline.pretraining.snapshots import save_model, sweep
from pipeline.pretraining.trainer import ModelTrainer, StepFigures
from pipeline.store.objects import Objects
from pipeline.tokens.tokenizer import load_tokenizer
from pipeline.training.checkpoint import Checkpoints, Progress
from pipeline.training.clock import Clock
from pipeline.training.tracker import Trackers, open_trackers
from pipeline.training.world import World
from schemas.errors import DivergenceError, SpecError
from schemas.train_model import MODEL, SNAPSHOTS, TrainModelSpec

_STATE = "model"

Report = Callable[[dict[str, Any]], None]


def pretrain(
    spec: TrainModelSpec,
    prepared: Prepared,
    world: World,
    *,
    report: Report | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Train the model of the spec.

    Args:
        spec: The job; every rank reads its output, rank 0 writes it.
        prepared: As ``prepare`` returned it.
        world: The ranks.
        report: Called on every rank at every logged step with the record of ``metrics.jsonl`` and ``num_steps``.
        device: Where weights live and steps run.

    Returns:
        ``steps, tokens, seconds, tokens_per_s, parameters, loss, held_out_loss`` (where it is measured), ``model`` (its
        folder), ``snapshots`` (step -> folder) and ``reused``. Times are this process's.

    Raises:
        DivergenceError: the loss or the gradient is not finite; the last checkpoint is kept.
        SpecError: the corpus has too little text for one batch, or none that is held out.
    """
    if (summary := finished(spec)) is not None:
        return summary
    return _Run(spec, prepared, world, torch.device(device)).train(report)


def snapshot_folder(spec: TrainModelSpec, step: int) -> Path:
    """Where the snapshot of a step is."""
    return output_folder(spec) / SNAPSHOTS / f"step{step}"


class _Run:
    """What the phases of one training share."""

    def __init__(self, spec: TrainModelSpec, prepared: Prepared, world: World, device: torch.device) -> None:
        self._spec, self._world, self._device = spec, world, device
        self._tokenizer = tokenizer_folder(spec)
        vocab_size = load_tokenizer(str(self._tokenizer)).vocab_size
        splits = read_contexts(open_table(prepared), vocab_size)
        self._contexts = splits.train
        self._held_out = _held_out(spec, splits)
        self._batches = Batches(len(self._contexts), spec.batch_contexts, spec.seed)
        width = int(max(each.lengths.max(initial=2) for each in (splits.train, splits.held_out)))
        self._trainer = ModelTrainer(build_network(spec.network, vocab_size, spec.seed), spec, device, width)
        self._checkpoints = Checkpoints(spec.output)

    def train(self, report: Report | None) -> dict[str, Any]:
        """All steps from the last checkpoint on, and the result."""
        spec, world = self._spec, self._world
        progress = self._restored()
        if world.rank == 0:
            sweep(output_folder(spec) / SNAPSHOTS, output_folder(spec))
        trackers = open_trackers(
            ["jsonl", *spec.trackers] if world.rank == 0 else [], spec.output, job=spec.name, step=progress.step
        )
        clock = Clock(progress.rows)
        try:
            if progress.step == 0:
                self._begin(trackers, clock, report)
            while progress.step < spec.steps:
                progress = self._next(progress, trackers, clock, report)
        finally:
            trackers.close()
        return self._complete(progress, clock)

    def _next(self, progress: Progress, trackers: Trackers, clock: Clock, report: Report | None) -> Progress:
        """One step, and what is due after it."""
        spec = self._spec
        batch = self._batches.at(progress.step)
        scheduled = spec.optimiser.learning_rate * learning_rate_factor(spec.schedule, progress.step, spec.steps)
        figures = self._trainer.step(self._contexts, batch, self._world, progress.step, scheduled)
        tokens = progress.rows + int(self._contexts.lengths[batch].sum())
        progress = Progress(progress.step + 1, tokens, metrics={_STATE: _metrics(figures)})
        self._require_finite(progress, figures)
        is_last = progress.step == spec.steps
        is_kept = progress.step in spec.snapshot_steps
        is_measured = is_kept or is_last or self._evaluates_after(progress.step)
        if is_measured:
            progress.metrics[_STATE].update(self._held_out_loss())
        if is_measured or _due(progress.step, spec.log_every_steps):
            self._log(progress, figures.learning_rate, trackers, clock, report)
        if is_kept:
            self._keep(progress.step)
        if is_last or _due(progress.step, spec.checkpoint_every_steps):
            self._checkpoint(progress, trackers)
        return progress

    def _begin(self, trackers: Trackers, clock: Clock, report: Report | None) -> None:
        """What is due before the first step."""
        self._log(Progress(metrics={_STATE: self._held_out_loss()}), 0.0, trackers, clock, report)
        if 0 in self._spec.snapshot_steps:
            self._keep(0)

    def _log(self, progress: Progress, rate: float, trackers: Trackers, clock: Clock, report: Report | None) -> None:
        record = {
            "step": progress.step,
            "tokens": progress.rows,
            "learning_rate": rate,
            "tokens_per_s": clock.rate(progress.rows),
            **progress.metrics[_STATE],
            **self._trainer.nonzeros(),
        }
        trackers.log(record)
        if report is not None:
            report({**record, "num_steps": self._spec.steps})

    def _require_finite(self, progress: Progress, figures: StepFigures) -> None:
        """The figures are those of all ranks, so all of them raise."""
        if math.isfinite(figures.loss) and math.isfinite(figures.gradient_norm):
            return
        raise DivergenceError(
            f"{self._spec.name}: at step {progress.step} the loss is {figures.loss:g} and the gradient's norm "
            f"{figures.gradient_norm:g}: train anew into another output with a lower optimiser.learning_rate, a longer "
            "schedule.warmup_fraction or a lower optimiser.max_gradient_norm. The last checkpoint in "
            f"{self._spec.output} is kept"
        )

    def _evaluates_after(self, step: int) -> bool:
        return self._spec.held_out is not None and _due(step, self._spec.held_out.evaluate_every_steps)

    def _held_out_loss(self) -> dict[str, float]:
        if self._held_out is None:
            return {}
        return {"held_out_loss": self._trainer.evaluate(self._held_out, self._world)}

    def _keep(self, step: int) -> None:
        if self._world.rank == 0:
            save_model(self._trainer.network, self._tokenizer, snapshot_folder(self._spec, step))

    def _checkpoint(self, progress: Progress, trackers: Trackers) -> None:
        """Metrics first: a resumed run drops lines after its checkpoint, it cannot bring back lines before it."""
        if self._world.rank == 0:
            trackers.flush()
            states: Iterator[tuple[str, Any]] = iter([(_STATE, self._trainer.state().items())])
            self._checkpoints.write(progress, read_identity(Objects(self._spec.output)), states)

    def _restored(self) -> Progress:
        """Where the last checkpoint was, its state on all ranks; without one rank 0's random weights on all: ranks on
        unlike hardware start from the same bits."""
        progress = Progress()
        state = self._trainer.state()
        if self._world.rank == 0 and (steps := self._checkpoints.steps()):
            progress = self._checkpoints.read_record(steps[-1])[0]
            for name, tensor in self._checkpoints.read_state(steps[-1], _STATE):
                state[name].copy_(tensor)
        place = torch.tensor([progress.step, progress.rows], device=self._device)
        self._world.broadcast(place)
        for tensor in state.values():
            self._world.broadcast(tensor)
        self._trainer.restore(int(place[0]))
        if self._world.rank:
            step, rows = place.tolist()
            progress = Progress(step, rows, metrics={_STATE: {}})
        return progress

    def _complete(self, progress: Progress, clock: Clock) -> dict[str, Any]:
        seconds, rate = clock.total(progress.rows)
        spec = self._spec
        summary = {
            "steps": progress.step,
            "tokens": progress.rows,
            "seconds": seconds,
            "tokens_per_s": rate,
            "parameters": self._trainer.num_parameters,
            **self._trainer.nonzeros(),
            **progress.metrics[_STATE],
            "model": str(output_folder(spec) / MODEL),
            "snapshots": {str(step): str(snapshot_folder(spec, step)) for step in spec.snapshot_steps},
            "reused": False,
        }
        if self._world.rank == 0:
            save_model(self._trainer.network, self._tokenizer, output_folder(spec) / MODEL)
            record = {"format": 1, "summary": summary}
            Objects(spec.output).write(COMPLETE, (json.dumps(record, indent=1) + "\n").encode())
        self._world.barrier()
        return summary


def _held_out(spec: TrainModelSpec, splits: Splits) -> Contexts | None:
    """What the held-out loss is measured on; None where the spec wants none."""
    if spec.held_out is None:
        return None
    if not len(splits.held_out):
        raise SpecError(
            f"{spec.name}: held_out measures on documents that were held out, and of the {len(splits.train)} contexts "
            f"of this corpus none are (tokens.held_out_fraction is {spec.tokens.held_out_fraction:g}): raise it, take "
            "more documents, or set held_out: null"
        )
    return splits.held_out.first(spec.held_out.num_tokens)


def _metrics(figures: StepFigures) -> dict[str, float]:
    return {"loss": figures.loss, "gradient_norm": figures.gradient_norm}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
