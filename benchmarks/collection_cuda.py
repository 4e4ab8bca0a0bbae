"""Collecting on a GPU: the share of the bare forward's speed that is kept with 1, 4 and 16 hook points. Needs no Ray.

A Llama of 1.2 thousand million random weights in bfloat16, width 2,048, 16 layers: speed does not depend on what the
weights are. Contexts of 512, 16,384 tokens in a forward, which runs through all layers for every number of hook points.

1. The bare forward is the backbone called on the same batches and nothing else, the device waited for at the end.
2. Ours is ``collect_units``: activations are rounded on the device, copied through page-locked buffers on a stream of
   their own while the next batch computes, encoded by as many threads as the process has cores, written and committed.
   ``one_by_one_over_bare`` is the same without any overlap.

The store is in memory (``/dev/shm``) where that has room, so that no disk is measured.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.collection import MODEL, built, stored
from pipeline.collection.prepare import prepare
from pipeline.models.load import load_model
from schemas.collect import CollectSpec

LAYERS, WIDTH, CONTEXT, BATCH_CONTEXTS, SHARD_ROWS = 16, 2048, 512, 32, 16384
UNITS, ROUNDS = 2, 3
HOOK_POINTS = {
    1: [f"blocks.{LAYERS - 1}.hook_resid_post"],
    4: [f"blocks.{layer}.hook_resid_post" for layer in range(3, LAYERS, 4)],
    16: [f"blocks.{layer}.hook_resid_post" for layer in range(LAYERS)],
}
NEEDED_BYTES = 40 * 2**30


def save_network(folder: Path) -> None:
    """Weights drawn on the GPU, where that takes a second."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=WIDTH, intermediate_size=8192, num_hidden_layers=LAYERS, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    with torch.device("cuda"):
        network = LlamaForCausalLM(config)
    network.to(torch.bfloat16).save_pretrained(folder)


def job(folder: Path, hook_points: list[str]) -> CollectSpec:
    return CollectSpec.model_validate({
        "model": {"path": str(folder / "network"), "dtype": "bfloat16", "device": "cuda"},
        "tokens": {
            "corpus": {"format": "text", "urls": ["{stdlib}/pydoc_data/topics.py"]},
            "tokenizer": MODEL,
            "packing": {"context_length": CONTEXT},
            "max_tokens": SHARD_ROWS * UNITS * (ROUNDS + 1),
            "output": str(folder / "tokens"),
        },
        "hook_points": hook_points,
        "batch_tokens": BATCH_CONTEXTS * CONTEXT,
        "storage": {"chunk_rows": 1024, "shard_rows": SHARD_ROWS},
        "output": str(folder / "store"),
    })  # fmt: skip


def place() -> str | None:
    """A folder in memory with enough room, else None for the ordinary place of temporary files."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > NEEDED_BYTES else None


def measure() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"skipped": "no CUDA device"}
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(dir=place()) as name:
        folder = Path(name)
        save_network(folder / "network")
        result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "threads": threads, "hook_points": {}}
        result["store_in_memory"] = place() is not None
        for number, hook_points in HOOK_POINTS.items():
            spec = job(folder, hook_points)
            (pending,) = prepare(spec, built(spec))
            backbone = load_model(spec.model).backbone
            figures = stored(pending.of, backbone, folder / "single", units=UNITS, rounds=ROUNDS)
            row_bytes = 2 * WIDTH * number
            figures["stored_gb_per_s"] = figures["stored_tokens_per_s"] * row_bytes / 1e9
            result["hook_points"][str(number)] = figures
            for store in ("store", "single"):
                shutil.rmtree(folder / store)
            del backbone
            torch.cuda.empty_cache()
        result["peak_device_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return result
