"""Eight dictionaries from one read of a store against eight runs with one dictionary each.

d_model 576, 4608 latents, TopK with k 32, batches of 4096, two threads, one epoch of a store on disk in bfloat16 with
the codec bf16, its files in the page cache. Whole runs are timed: opening the store, reading, every step, the results.
Both take turns for ``ROUNDS`` rounds in one process, after a run that compiles the loops; the fastest of each
counts, since whatever else the machine does can only slow one down.

Beside that: one product of the rows with the encoders of all eight, side by side, against eight products. It is what
could be gained by batching dictionaries of one shape.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

import torch

from benchmarks import reading
from pipeline.training import engine
from pipeline.training.world import SingleWorld
from schemas.train import TrainSpec

D_MODEL, NUM_LATENTS, BATCH_ROWS, NUM_ROWS, THREADS, NUM, ROUNDS, REPEATS = 576, 4608, 4096, 2**15, 2, 8, 3, 3


def spec(store: str, output: str, seeds: list[int], num_tokens: int = 0) -> TrainSpec:
    """One job with a dictionary for each seed."""
    return TrainSpec.model_validate({
        "store": store, "output": output, "batch_rows": BATCH_ROWS, "num_tokens": num_tokens, "trackers": [],
        "rows": {"exclude_positions": []}, "order": {"window_chunks": 16}, "checkpoint_every_steps": 0,
        "sweep": {"base": {"sources": [reading.HOOK], "num_latents": NUM_LATENTS}, "over": {"seed": seeds}},
    })  # fmt: skip


def seconds_of(job: TrainSpec) -> float:
    began = time.perf_counter()
    engine.train(job, SingleWorld())
    return time.perf_counter() - began


def products() -> dict[str, float]:
    """Median seconds of the eight products one after the other, and of the one that is as wide as all."""
    rows = torch.randn(BATCH_ROWS, D_MODEL)
    encoders = torch.randn(NUM * NUM_LATENTS, D_MODEL)
    out = torch.empty(BATCH_ROWS, NUM_LATENTS)
    wide = torch.empty(BATCH_ROWS, NUM * NUM_LATENTS)
    apart, together = [], []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for encoder in encoders.split(NUM_LATENTS):
            torch.mm(rows, encoder.T, out=out)
        apart.append(time.perf_counter() - began)
        began = time.perf_counter()
        torch.mm(rows, encoders.T, out=wide)
        together.append(time.perf_counter() - began)
    eight, one = statistics.median(apart), statistics.median(together)
    return {"eight_s": eight, "one_s": one, "one_over_eight": one / eight}


def measure() -> dict[str, Any]:
    """See the module."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        reading.write(store, D_MODEL, NUM_ROWS, codec="bf16")
        seconds_of(spec(store, f"{folder}/warm", [0], num_tokens=BATCH_ROWS))
        together, apart = [], []
        for turn in range(ROUNDS):
            apart.append(sum(seconds_of(spec(store, f"{folder}/{turn}/{seed}", [seed])) for seed in range(NUM)))
            together.append(seconds_of(spec(store, f"{folder}/{turn}/all", list(range(NUM)))))
    return {
        "threads": THREADS, "d_model": D_MODEL, "num_latents": NUM_LATENTS, "batch_rows": BATCH_ROWS,
        "rows": NUM_ROWS, "dictionaries": NUM, "one_run_s": min(together), "eight_runs_s": min(apart),
        "eight_runs_over_one": min(apart) / min(together), "encoder_products": products(),
    }  # fmt: skip
