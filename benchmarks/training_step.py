"""One training step of a TopK SAE against sparsify, dictionary_learning and SAELens.

Same rows, d_model 576, k 32, same number of threads, float32 (each library's fastest on a processor without bfloat16
units, as the bare product of the encoder in both precisions shows). Every library does its own whole step: loss,
gradients, clipping where it clips, optimiser, decoder norms. Libraries take turns, in processes of their own, for
``ROUNDS`` rounds; of each the round with the fastest median counts, since whatever else the machine does can only slow
one down.
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

D_MODEL, K, THREADS, STEPS, ROUNDS = 576, 32, 2, 8, 1
SETTINGS = ((4608, 2048), (4608, 4096), (18432, 2048), (18432, 4096))
PEERS = {"sparsify": 4, "dictionary_learning": 2, "sae_lens": 2}
"""Steps of a round."""


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


def encoder_product(rows: torch.Tensor, num_latents: int, batch: int, dtype: torch.dtype) -> float:
    """Median seconds of the dense product of a step and nothing else."""
    weight, out = torch.randn(num_latents, D_MODEL).to(dtype), torch.empty(batch, num_latents, dtype=dtype)
    rows = rows[:batch].to(dtype)
    seconds = []
    # In bfloat16 once: without units for it, it takes seconds.
    for _ in range(STEPS + 1 if dtype == torch.float32 else 2):
        began = time.perf_counter()
        torch.mm(rows, weight.T, out=out)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def setting(rows: torch.Tensor, path: Path, num_latents: int, batch: int) -> dict[str, Any]:
    """All libraries at one size."""
    product_s, ours_s = [], []
    peers: dict[str, list[dict[str, Any]]] = {name: [] for name in PEERS}
    for _ in range(ROUNDS):
        product_s.append(encoder_product(rows, num_latents, batch, torch.float32))
        ours_s.append(ours(rows, num_latents, batch))
        for name, steps in PEERS.items():
            peers[name].append(peer.run("training_step.py", name, path, num_latents, K, batch, steps, threads=THREADS))
    product, step = min(product_s), min(ours_s)
    low = encoder_product(rows, num_latents, batch, torch.bfloat16)
    line: dict[str, Any] = {
        "num_latents": num_latents, "batch": batch, "encoder_product_float32_s": product,
        "encoder_product_bfloat16_s": low, "headworks_s": step, "headworks_tokens_per_s": batch / step,
        "encoder_product_over_headworks": min(product, low) / step,
    }  # fmt: skip
    for name, answers in peers.items():
        if "skipped" in answers[0]:
            line[name] = answers[0]
            continue
        peer_s = min(answer["median_s"] for answer in answers)
        line[name] = {"step_s": peer_s, "tokens_per_s": batch / peer_s, "times_headworks": peer_s / step}
    return line


def measure() -> dict[str, Any]:
    torch.set_num_threads(THREADS)
    rows = np.random.default_rng(0).standard_normal((8192, D_MODEL)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, rows)
        table = [setting(torch.from_numpy(rows), path, *size) for size in SETTINGS]
    return {"threads": THREADS, "d_model": D_MODEL, "k": K, "steps": table}
