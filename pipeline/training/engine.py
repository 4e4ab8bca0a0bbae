"""The training engine: a store in, dictionaries out, the same on one rank as on many.

Every rank calls ``train`` with the same spec and its own ``World``:

  1. open the store, refuse what does not fit (hook points, memory, an output of another run);
  2. reuse a finished output, or go on from the last checkpoint, or start; rank 0 reads, the others get it broadcast;
  3. for each global batch, one step of every dictionary;
  4. rank 0 logs, writes checkpoints and in the end ``NAME/dictionary.safetensors`` and ``NAME/dictionary.json`` of each
     dictionary and, last, ``training.json``, which says that the output is complete.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from pipeline.order.feed import FeedBatch, FeedState, RowFeed
from pipeline.store.arriving import FeedStore
from pipeline.store.joined import open_any
from pipeline.store.objects import Objects
from pipeline.training import held_out, memory, result, resume, schedule, shards
from pipeline.training.batch import SharedRows
from pipeline.training.checkpoint import Checkpoints, Progress
from pipeline.training.clock import Clock
from pipeline.training.held_out import HeldOutBatch
from pipeline.training.identity import identity
from pipeline.training.points import points_of
from pipeline.training.tracker import Trackers, open_trackers
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import World
from schemas.errors import DivergenceError, SpecError
from schemas.train import TrainSpec

COMPLETE = "training.json"

_log = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]


def train(
    spec: TrainSpec,
    world: World,
    *,
    store: FeedStore | None = None,
    report: Report | None = None,
    device: torch.device | str = "cpu",
    num_threads: int | None = None,
) -> dict[str, Any]:
    """Train all dictionaries of the spec.

    Args:
        spec: The job; every rank reaches ``store``, rank 0 reaches ``output``.
        world: The ranks.
        store: What is read, where it is not a complete store at ``spec.store``.
        report: Called on every rank at every logged step with the record of ``metrics.jsonl``, ``num_steps``
            and the ``stalled_seconds`` so far.
        device: Where weights live and steps run.
        num_threads: Threads of the compiled loops; None: as many as torch has.

    Returns:
        ``steps, tokens, seconds, stalled_seconds, tokens_per_s, reused``, ``dictionaries``: name -> figures of the last
        step, and ``stopped``, empty, see ``require_all_trained``. ``stalled_seconds``: waiting for rows. Times are this
        process's and do not count what an earlier, interrupted one did.

    Raises:
        MismatchError: the output holds a run of another identity.
        HookPointError: the store lacks a hook point.
        ResourceError: the dictionaries do not fit into memory.
        DivergenceError: some dictionaries diverged; the others are trained, and all is written.
    """
    run = _Run(spec, world, torch.device(device), store)
    summary = run.finished() or run.train(report, num_threads or torch.get_num_threads())
    require_all_trained(spec, summary)
    return summary


def require_all_trained(spec: TrainSpec, summary: Mapping[str, Any]) -> None:
    """Refuse the summary of a training in which dictionaries diverged.

    Raises:
        DivergenceError: naming them, why, and what is kept of them.
    """
    stopped = summary.get("stopped")
    if not stopped:
        return
    lines = [
        f"  step {facts['step']} of dictionary {name!r}: {facts['reason']}; "
        + (f"{name} is kept as of step {facts['kept_step']}" if facts["kept_step"] else "no good checkpoint is kept")
        for name, facts in stopped.items()
    ]
    num_others = len(spec.dictionaries) - len(stopped)
    raise DivergenceError(
        f"{spec.name}: {len(stopped)} of {len(spec.dictionaries)} dictionaries diverged and were stopped"
        + (f"; the other {num_others} are trained and in {spec.output}:" if num_others else ":")
        + "\n"
        + "\n".join(lines)
        + "\nTrain them anew into another output with a lower learning_rate or a higher schedule.warmup_fraction; "
        "where figures are not finite, look for NaN in the store (num_nan and num_inf of its statistics)"
    )


class _Run:
    """What the phases of one call of ``train`` share."""

    def __init__(self, spec: TrainSpec, world: World, device: torch.device, store: FeedStore | None) -> None:
        self._spec = spec
        self._world = world
        self._device = device
        self._points = points_of(spec)
        self._store: FeedStore = open_any(spec.store, self._points) if store is None else store
        self._identity = identity(spec, store_fingerprint=self._store.fingerprint, num_rows=self._store.num_rows)
        self._checkpoints = Checkpoints(spec.output)

    def finished(self) -> dict[str, Any] | None:
        """The summary of an output that is complete already, None where there is work to do."""
        found = torch.zeros(1, dtype=torch.int64, device=self._device)
        summary: dict[str, Any] = {}
        outputs = Objects(self._spec.output)
        if self._world.rank == 0 and outputs.exists(COMPLETE):
            record = json.loads(outputs.read(COMPLETE))
            resume.require_same_run(self._identity, record["identity"], self._spec.output)
            summary = record["summary"]
            found += 1
        self._world.broadcast(found)
        return {**summary, "reused": True} if found.item() else None

    def train(self, report: Report | None, num_threads: int) -> dict[str, Any]:
        """All steps from the last checkpoint on, and the result."""
        spec, world = self._spec, self._world
        feed = RowFeed(
            self._store,
            self._points,
            rows=spec.rows,
            order=spec.order,
            batch_rows=spec.batch_rows,
            rank=world.rows.rank,
            world_size=world.rows.size,
            first_in_order=spec.feed != "stored",
        )
        memory.require_memory(
            spec.dictionaries,
            self._store.hook_points,
            available=memory.available_bytes(self._device),
            ranks_per_node=world.ranks_per_node,
            latent_shards=world.latents.size,
        )
        trainers = result.start(
            spec, self._store, self._points, feed.eligible, world.latents, device=self._device, num_threads=num_threads
        )
        progress = resume.restore(trainers, self._checkpoints, self._identity, world)
        names = ["jsonl", *spec.trackers] if world.rank == 0 else []
        trackers = open_trackers(names, spec.output, job=spec.name, step=progress.step)
        clock = Clock(progress.rows)
        try:
            held_out_rows = held_out.read(spec, self._store, self._points, world.rows, self._device)
            progress = self._steps(feed, trainers, held_out_rows, progress, trackers, clock, report)
        finally:
            trackers.close()
        return self._complete(trainers, progress, clock)

    def _steps(
        self,
        feed: RowFeed,
        trainers: list[DictionaryTrainer],
        held_out_rows: list[HeldOutBatch],
        progress: Progress,
        trackers: Trackers,
        clock: Clock,
        report: Report | None,
    ) -> Progress:
        spec = self._spec
        num_rows = schedule.total_rows(spec, feed.rows_per_epoch)
        num_steps = schedule.total_steps(num_rows, feed.rows_per_epoch, spec.batch_rows)
        _require_one_epoch(spec, num_rows, feed.rows_per_epoch)
        if progress.step == num_steps or not _running(trainers):
            return progress
        with closing(feed.iterate(FeedState(progress.epoch, progress.batch))) as batches:
            while progress.step < num_steps:
                with clock.stall():
                    batch = next(batches)
                factor = schedule.learning_rate_factor(spec.schedule, progress.step, num_steps)
                metrics = self._step(batch, trainers, factor, progress.step / num_steps)
                progress = Progress(
                    step=progress.step + 1,
                    rows=progress.rows + batch.global_rows,
                    epoch=batch.state_after.epoch,
                    batch=batch.state_after.batch,
                    metrics=metrics,
                )
                progress = self._without_diverged(trainers, progress)
                is_last = progress.step == num_steps or not _running(trainers)
                is_measured = bool(held_out_rows) and (is_last or self._evaluates_after(progress.step))
                if is_measured:
                    progress = self._evaluated(held_out_rows, trainers, progress, progress.step / num_steps)
                if is_last or is_measured or _due(progress.step, spec.log_every_steps):
                    record = self._record(progress, factor, clock) | self._quality(feed, batch)
                    trackers.log(record)
                    if report is not None:
                        report({**record, "num_steps": num_steps, "stalled_seconds": clock.stalled_s})
                if is_last or _due(progress.step, spec.checkpoint_every_steps):
                    self._checkpoint(trainers, progress, trackers)
                if is_last:
                    break
        return progress

    def _step(
        self, batch: FeedBatch, trainers: list[DictionaryTrainer], factor: float, share: float
    ) -> dict[str, dict[str, float]]:
        """One step of every dictionary; their figures by name."""
        rows = SharedRows(batch.activations)
        return {
            trainer.dictionary.spec.name: trainer.step(
                rows,
                num_rows=batch.global_rows,
                factor=factor,
                progress=share,
                world=self._world,
                row_ids=batch.rows,
            )
            for trainer in _running(trainers)
        }

    def _evaluates_after(self, step: int) -> bool:
        return self._spec.held_out is not None and _due(step, self._spec.held_out.evaluate_every_steps)

    def _evaluated(
        self, batches: list[HeldOutBatch], trainers: list[DictionaryTrainer], progress: Progress, share: float
    ) -> Progress:
        """With the figures on held-out rows beside those of the step."""
        metrics = dict(progress.metrics)
        shared = [(SharedRows(batch.acts), batch.num_rows) for batch in batches]
        for trainer in _running(trainers):
            name = trainer.dictionary.spec.name
            figures = trainer.evaluate(shared, progress=share, world=self._world)
            metrics[name] = metrics[name] | {f"held_out_{figure}": value for figure, value in figures.items()}
        return replace(progress, metrics=metrics)

    def _without_diverged(self, trainers: list[DictionaryTrainer], progress: Progress) -> Progress:
        """Set dictionaries that this step has found to diverge back to their last good checkpoint, and write that.

        The others go on: what they learn does not depend on them, and their share of the work is done.
        """
        metrics = dict(progress.metrics)
        for trainer in trainers:
            name = trainer.dictionary.spec.name
            verdict = trainer.watch.verdict
            if verdict is None or name not in metrics:
                continue
            del metrics[name]
            kept = resume.fall_back(trainer, self._checkpoints, self._world)
            trainer.watch.settle(verdict, kept.step if kept else 0)
            _log.warning("%s: %s, stopped at step %d", name, verdict.reason(self._spec.divergence), verdict.step)
            if kept:
                self._write(trainer, kept)
        return replace(progress, metrics=metrics)

    def _write(self, trainer: DictionaryTrainer, progress: Progress) -> None:
        """The dictionary's folder; the ranks that share its latents take part."""
        if self._world.rows.rank == 0:
            whole = shards.whole_dictionary(trainer.dictionary, self._world.latents)
            if whole is not None:
                result.write(self._spec, self._store, progress, whole)

    def _record(self, progress: Progress, factor: float, clock: Clock) -> dict[str, Any]:
        return {
            "step": progress.step,
            "tokens": progress.rows,
            # The highest of the job's dictionaries; all of them follow the same schedule.
            "learning_rate": max(d.learning_rate for d in self._spec.dictionaries) * factor,
            "tokens_per_s": clock.rate(progress.rows),
            "stalled_s": clock.newly_stalled_s(),
            "dictionaries": progress.metrics,
        }

    def _quality(self, feed: RowFeed, batch: FeedBatch) -> dict[str, float]:
        """How well the batch is mixed; on rank 0, which is the one that logs."""
        if self._world.rank:
            return {}
        quality = feed.quality_of(batch)
        return {"same_context_rate": quality.rate, "same_context_rate_ideal": quality.ideal}

    def _checkpoint(self, trainers: list[DictionaryTrainer], progress: Progress, trackers: Trackers) -> None:
        """Metrics first: a resumed run drops lines after its checkpoint, it cannot bring back lines before it."""
        states = self._whole_states(trainers)
        if self._world.rank == 0:
            trackers.flush()
            suspect = [trainer.dictionary.spec.name for trainer in trainers if trainer.watch.is_suspect]
            self._checkpoints.write(progress, self._identity, states, suspect)
        else:
            for _, tensors in states:
                deque(tensors, maxlen=0)

    def _whole_states(
        self, trainers: list[DictionaryTrainer]
    ) -> Generator[tuple[str, Iterator[tuple[str, torch.Tensor]]], None, None]:
        """Name and state of one dictionary after the other, whole on rank 0; those that share it go through it, too."""
        for trainer in trainers if self._world.rows.rank == 0 else []:
            one = trainer.dictionary.spec
            yield one.name, shards.gather(trainer.state(), one.num_latents, self._world.latents)

    def _complete(self, trainers: list[DictionaryTrainer], progress: Progress, clock: Clock) -> dict[str, Any]:
        seconds, rate = clock.total(progress.rows)
        summary = {
            "steps": progress.step,
            "tokens": progress.rows,
            "seconds": seconds,
            "stalled_seconds": clock.stalled_s,
            "tokens_per_s": rate,
            "reused": False,
            "dictionaries": progress.metrics,
            "stopped": {
                trainer.dictionary.spec.name: verdict.facts(self._spec.divergence)
                for trainer in trainers
                if (verdict := trainer.watch.verdict)
            },
        }
        for trainer in _running(trainers):
            self._write(trainer, progress)
        if self._world.rank == 0:
            record = {"format": 1, "identity": self._identity, "summary": summary}
            Objects(self._spec.output).write(COMPLETE, (json.dumps(record, indent=1) + "\n").encode())
        self._world.barrier()
        return summary


def _running(trainers: list[DictionaryTrainer]) -> list[DictionaryTrainer]:
    """Those that have not diverged."""
    return [trainer for trainer in trainers if trainer.watch.verdict is None]


def _require_one_epoch(spec: TrainSpec, num_rows: int, rows_per_epoch: int) -> None:
    if spec.feed == "live" and num_rows > rows_per_epoch:
        raise SpecError(
            f"{spec.name}: num_tokens asks for {num_rows:,} rows, but feed live keeps no row, so there is one epoch of "
            f"{rows_per_epoch:,} rows only: lower num_tokens, collect more tokens, or use feed: tee or follow"
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
