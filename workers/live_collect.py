"""The collect job of feed ``live``: forward processes that make blocks as long as the training wants them."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import exceptions

from pipeline.collection.prepare import CollectPass
from workers.answers import answer_of
from workers.live_exchange import LiveFigures
from workers.live_notes import StallNotes
from workers.pool import POLL_INTERVAL_S
from workers.progress import Progress


def run_live_collect(one: CollectPass, exchange: Any, num_workers: int, progress: Progress) -> dict[str, Any]:
    """Have the exchange make blocks until it is told to finish; the summary, as ``run_collect`` gives it.

    Raises:
        HeadworksError: what the exchange ended with.
    """
    started_s = time.perf_counter()
    running = exchange.run.remote(one, num_workers)
    name = one.spec.name
    waits = StallNotes(name, "the training", progress)
    ready_s, figures = 0.0, LiveFigures()
    with progress.task(f"{name}: activations", total=one.num_rows) as task:
        while not ray.wait([running], timeout=POLL_INTERVAL_S)[0]:
            figures = _figures(exchange, figures)
            if figures.workers_ready and not ready_s:
                ready_s = time.perf_counter()
                task.restart_clock()
            if figures.rows > task.done:
                task.advance(figures.rows - task.done)
            else:
                task.tick()
            waits.add(figures.stalled_s / num_workers, time.perf_counter())
        answer_of(running, name, advice="It hands blocks to the training; run the pipeline again.")
        figures = _figures(exchange, figures)
        task.advance(max(0, figures.rows - task.done))
    seconds = time.perf_counter() - (ready_s or started_s)
    return {
        "tokens": one.num_rows,
        "tokens_computed": figures.rows,
        "tokens_per_s": figures.rows / seconds,
        "bytes": 0,
        "bytes_per_s": 0.0,
        "units": one.num_units,
        "units_reused": 0,
        "reused": False,
        "retries": figures.retries,
        "worker_deaths": figures.deaths,
        "stalled_seconds": figures.stalled_s,
        "hook_points": {},
        "seconds": time.perf_counter() - started_s,
        "seconds_by_stage": {"load": max(0.0, ready_s - started_s), "collect": seconds},
        "fingerprint": one.record.fingerprint,
        "table_fingerprint": one.record.table_fingerprint,
    }


def _figures(exchange: Any, known: LiveFigures) -> LiveFigures:
    try:
        return LiveFigures(**ray.get(exchange.figures.remote(), timeout=5.0))
    except exceptions.RayError:
        return known
