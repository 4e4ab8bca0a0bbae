"""Lossless codecs on real activations: size, and GB/s of decoded bytes on one core.

Residual stream of SmolLM2-135M behind layer 9 (576 channels), 16,384 tokens of English prose, bfloat16, collected here.
Every codec gets the same chunks of 1,024 rows, one by one, as a store's writer and reader give them. Passes of all
codecs take turns, so that a change of the machine's speed meets all of them; ZipNN, in its own process, has passes
before and after. The medians are compared; on a machine with other work the best say more.

Neurons behind a ReLU besides: of the last MLP of a GPT-2 of four layers with ReLU, trained here on bytes of Python's
standard library, on text that it was not trained on. How many are zero is the model's affair; larger and longer trained
ones have more zeros.
"""

from __future__ import annotations

import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from numcodecs import blosc
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import collection, peer
from pipeline.collection.prepare import prepare
from pipeline.collection.unit import UnitCollector
from pipeline.models.forward import ActivationForward
from pipeline.models.load import LoadedModel
from pipeline.store import bf16_codec, sparse_codec
from pipeline.store.reader import Store
from pipeline.store.words import to_words
from pipeline.tokens.table import build_table
from schemas.model import ModelSpec

HOOK, ROWS, CHUNK_ROWS, PASSES = "blocks.9.hook_resid_post", 16384, 1024, 15
NEURON_ROWS, TRAIN_STEPS, CONTEXT = 16384, 300, 128
Codec = tuple[Callable[[np.ndarray], Any], Callable[[Any], Any]]


def sample() -> np.ndarray:
    """Words [ROWS, 576]."""
    with tempfile.TemporaryDirectory() as name:
        spec = collection.job(Path(name))
        table = build_table(spec.tokens, spec.model, url=f"{name}/tokens", shard_rows=collection.SHARD_ROWS)
        (pending,) = prepare(spec, table)
        collector = UnitCollector.open(pending.of)
        for unit in range(ROWS // collection.SHARD_ROWS):
            collector.collect(unit)
        return np.array(Store.open(spec.output, allow_partial=True).read_rows(HOOK, 0, ROWS))


def neurons() -> np.ndarray:
    """bfloat16 words [NEURON_ROWS, 1024] of ``blocks.3.mlp.hook_post``."""
    folder = Path(sysconfig.get_path("stdlib"))
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    held_out = ids[-NEURON_ROWS:].view(-1, CONTEXT)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_positions=CONTEXT, n_embd=256, n_layer=4, n_head=4, activation_function="relu",
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(TRAIN_STEPS):
        starts = torch.randint(len(ids) - NEURON_ROWS - CONTEXT, (16,))
        batch = torch.stack([ids[start : start + CONTEXT] for start in starts])
        loss = model(batch, labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval().requires_grad_(False)
    spec = ModelSpec(path="trained here", dtype="float32", device="cpu")
    loaded = LoadedModel(model.transformer, spec, torch.float32, torch.device("cpu"), {}, 256, 4)
    forward = ActivationForward(loaded, ["blocks.3.mlp.hook_post"])
    acts_BLD = forward.run(held_out, torch.full((len(held_out),), CONTEXT))["blocks.3.mlp.hook_post"]
    return to_words(acts_BLD.flatten(0, 1).numpy(), "bfloat16")


def codecs(width: int) -> dict[str, Codec]:
    """name -> (encode a chunk [n, D], decode it)."""
    blosc.use_threads = False
    found: dict[str, Codec] = {
        "headworks.bf16": (bf16_codec.encode, lambda payload: bf16_codec.decode(payload, CHUNK_ROWS, width)),
        "headworks.sparse": (
            sparse_codec.encode,
            lambda payload: sparse_codec.decode(payload, CHUNK_ROWS, width, np.dtype("<u2")),
        ),
        "blosc_shuffle_zstd_1": (
            lambda words: blosc.compress(words.reshape(-1), b"zstd", 1, blosc.SHUFFLE, 0, 2),
            blosc.decompress,
        ),
        "memcpy": (np.copy, np.copy),
    }
    for level in (1, 3):
        packer, unpacker = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
        found[f"zstd_{level}"] = (packer.compress, unpacker.decompress)
    return found


def one_pass(codec: Codec, chunks: list[np.ndarray]) -> tuple[float, float, int]:
    """(seconds of encoding, seconds of decoding, bytes); checks that the words come back.

    Decoded chunks are dropped at once, as a reader does that copies their rows into its window: keeping them would
    measure how fast the system hands out fresh memory.
    """
    encode, decode = codec
    began = time.perf_counter()
    packed = [encode(chunk) for chunk in chunks]
    between = time.perf_counter()
    for one in packed:
        decode(one)
    ended = time.perf_counter()
    for one, chunk in zip(packed, chunks, strict=True):
        np.testing.assert_array_equal(np.frombuffer(decode(one), np.uint16), chunk.reshape(-1))
    return between - began, ended - between, sum(memoryview(one).nbytes for one in packed)


def zipnn(words: np.ndarray) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        np.save(f"{name}/words.npy", words)
        return peer.run("zipnn_codec.py", f"{name}/words.npy", CHUNK_ROWS, PASSES // 2, threads=1)


def measure() -> dict[str, Any]:
    words = sample()
    before = zipnn(words)
    rates = in_turns(words)
    if "skipped" not in before:
        after = zipnn(words)
        seconds = [before[kind] + after[kind] for kind in ("encode_s", "decode_s")]
        rates["zipnn"] = _rates(words.nbytes, before["size"], *seconds)
    else:
        rates["zipnn"] = before
    facts = {"rows": ROWS, "chunk_rows": CHUNK_ROWS, "threads": 1, "codecs": rates}
    return {**facts, "neurons": measure_neurons()}


def measure_neurons() -> dict[str, Any]:
    """The same of neurons, most of which are zero."""
    torch.set_num_threads(1)
    words = neurons()
    share = {"rows": len(words), "width": words.shape[1], "zeros": round(float((words == 0).mean()), 4)}
    return {**share, "codecs": in_turns(words)}


def in_turns(words: np.ndarray) -> dict[str, dict[str, float]]:
    """Size and rates of every codec on words [n, D]."""
    chunks = [words[first : first + CHUNK_ROWS] for first in range(0, len(words), CHUNK_ROWS)]
    all_codecs = codecs(words.shape[1])
    runs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in all_codecs}
    for turn in range(PASSES + 1):
        for name, codec in all_codecs.items():
            timed = one_pass(codec, chunks)
            if turn:  # The first pass compiles and fills caches.
                runs[name].append(timed)
    return {
        name: _rates(words.nbytes, of[0][2] / words.nbytes, [run[0] for run in of], [run[1] for run in of])
        for name, of in runs.items()
    }


def _rates(num_bytes: int, size: float, encode_s: list[float], decode_s: list[float]) -> dict[str, float]:
    return {
        "size_over_raw": round(size, 4),
        "encode_gb_per_s": round(num_bytes / statistics.median(encode_s) / 1e9, 3),
        "decode_gb_per_s": round(num_bytes / statistics.median(decode_s) / 1e9, 3),
        "decode_gb_per_s_best": round(num_bytes / min(decode_s) / 1e9, 3),
        "encode_gb_per_s_best": round(num_bytes / min(encode_s) / 1e9, 3),
    }
