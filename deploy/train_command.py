"""``headworks train``: a train job without Ray, in this process or in the ranks of ``torchrun``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from deploy import show
from deploy.exits import FAILED, STOPPED, USER_ERROR, Stopped, stoppable
from deploy.options import json_option, set_option
from pipeline.logs import progress_stream
from schemas.errors import SpecError, UserError
from schemas.train import TrainSpec

if TYPE_CHECKING:
    from pipeline.training.torchrun import Ranks


@click.command()
@click.argument("spec", type=click.Path())
@set_option
@json_option
def train(spec: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train without Ray: in this process, or in several that torchrun starts.

    torchrun --nproc-per-node 2 -m headworks train job.yaml

    The job is one of kind train on a complete store. The number of ranks is that of torchrun, not that of the spec.
    """
    from pipeline.training.torchrun import Ranks

    ranks = Ranks()
    with _one_voice(ranks):
        job = _train_job(spec, overrides)
        kept = f"stopped. Kept: the last checkpoint in {job.output}. The same command goes on from there."
        with stoppable(lambda: kept), _shown(job, ranks) as report:
            summary = ranks.train(job, report)
    if ranks.rank == 0:
        show.emit(summary, _lines(job, summary), as_json=as_json)


def _train_job(path: str, overrides: tuple[str, ...]) -> TrainSpec:
    from pipeline.spec_file import load_job

    job = load_job(path, overrides)
    if not isinstance(job, TrainSpec):
        raise SpecError(
            f"{path}: headworks train runs a job of kind train, this one is of kind {job.kind}: use `headworks run`"
        )
    return job


@contextmanager
def _one_voice(ranks: Ranks) -> Iterator[None]:
    """Let one rank tell what went wrong; the others end with the same code and say nothing."""
    try:
        yield
    except Exception as error:
        if ranks.speaks():
            raise
        code = STOPPED if isinstance(error, Stopped) else USER_ERROR if isinstance(error, UserError) else FAILED
        raise click.exceptions.Exit(code) from None


@contextmanager
def _shown(job: TrainSpec, ranks: Ranks) -> Iterator[Any]:
    """What reports progress; nobody but rank 0 shows any."""
    if ranks.rank:
        yield None
        return
    from workers.progress import Progress

    with Progress(progress_stream()).task(job.name, unit="steps") as task:

        def report(record: dict[str, Any]) -> None:
            if not task.total:
                # Neither the start nor what an earlier run had done is in the rate.
                task.started_s, task.reused = task.clock(), record["step"]
            task.reach(record["step"], record["num_steps"])

        yield report


def _lines(job: TrainSpec, summary: dict[str, Any]) -> list[str]:
    how = "reused" if summary["reused"] else f"{summary['steps']:,} steps, {summary['tokens']:,} tokens"
    return [f"{job.name}: {how}", *show.dictionary_lines(summary["dictionaries"]), f"  {job.output}"]
