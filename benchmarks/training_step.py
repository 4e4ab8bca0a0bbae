"""One training step of a TopK SAE against sparsify, dictionary_learning and SAELens.

Same rows, d_model 576, k 32, same number of threads, float32 (each library's fastest on a processor without bfloat16
units). Every library does its own whole step: loss, gradients, clipping where it clips, optimiser, decoder norms.
Steps of all libraries are taken in turn of whole runs; the medians are compared.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import peer
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.initialise import fill
from pipeline.training import kernels
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import SingleWorld
from schemas.activation import TopK
from schemas.dictionary import DictionarySpec

D_MODEL, K, THREADS, STEPS = 576, 32, 2, 8
SETTINGS = ((4608, 2048), (4608, 4096), (18432, 2048), (18432, 4096))
PEERS = ("sparsify", "dictionary_learning", "sae_lens")


def ours(rows: torch.Tensor, num_latents: int, batch: int) -> float:
    """Median seconds of one step."""
    spec = DictionarySpec(name="sae", sources=["x"], num_latents=num_latents, activation=TopK(k=K))
    dictionary = Dictionary(spec, {"x": D_MODEL}, {"x": D_MODEL}, {"x": 1.0})
    fill(dictionary, {"x": torch.zeros(D_MODEL)})
    chosen = kernels.choose(torch.device("cpu"), torch.float32, THREADS)
    trainer = DictionaryTrainer(dictionary, chosen, max_gradient_norm=1.0)
    seconds = []
    for index in range(STEPS + 1):
        start = index * batch % (len(rows) - batch + 1)
        began = time.perf_counter()
        trainer.step({"x": rows[start : start + batch]}, num_rows=batch, factor=1.0, progress=0.5, world=SingleWorld())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def encoder_product(rows: torch.Tensor, num_latents: int, batch: int) -> float:
    """Median seconds of the dense product that no step can do without: the limit."""
    weight, out = torch.randn(num_latents, D_MODEL), torch.empty(batch, num_latents)
    seconds = []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        torch.mm(rows[:batch], weight.T, out=out)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def measure() -> dict[str, Any]:
    torch.set_num_threads(THREADS)
    rows = np.random.default_rng(0).standard_normal((8192, D_MODEL)).astype(np.float32)
    table = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, rows)
        for num_latents, batch in SETTINGS:
            limit = encoder_product(torch.from_numpy(rows), num_latents, batch)
            line: dict[str, Any] = {"num_latents": num_latents, "batch": batch, "encoder_product_s": limit}
            line["headworks_s"] = ours(torch.from_numpy(rows), num_latents, batch)
            line["encoder_product_over_headworks"] = limit / line["headworks_s"]
            for name in PEERS:
                answer = peer.run("training_step.py", name, path, num_latents, K, batch, 4, threads=THREADS)
                line[name] = answer if "skipped" in answer else {
                    "step_s": answer["median_s"], "times_headworks": answer["median_s"] / line["headworks_s"],
                }  # fmt: skip
            table.append(line)
    return {"threads": THREADS, "d_model": D_MODEL, "k": K, "steps": table}
