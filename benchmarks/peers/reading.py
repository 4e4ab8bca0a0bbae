"""One epoch of shuffled batches by a peer's reader, timed. Runs in the peers' environment, prints one JSON line.

Usage: reading.py LIBRARY WORDS.npy FOLDER BATCH_ROWS CONTEXT THREADS
WORDS.npy is bfloat16 as uint16 [rows, d_model]. The peer's files are written to FOLDER first, and so are page-cached.

sae_lens: a dataset as its CacheActivationsRunner writes it (float32, one sequence a row, shards of the default size),
read by its ActivationsStore with its mixing buffer (half of the buffer stays; sequences in order).
safetensors: files of 16,384 rows in bfloat16, loaded whole in a random order, the rows of a file permuted: what
projects without a store of their own do.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

HOOK, SHARD_ROWS, EPOCHS = "blocks.9.hook_resid_post", 16384, 4


def sae_lens(words: np.ndarray, folder: Path, batch_rows: int, context: int) -> Callable[[], int]:
    """Reads as many batches as an epoch has rows; returns the rows that came."""
    from datasets import Array2D, Dataset, Features, Sequence, Value, concatenate_datasets
    from sae_lens.training.activations_store import ActivationsStore

    width = words.shape[1]
    values = torch.from_numpy(words).view(torch.bfloat16).float().numpy().reshape(-1, context, width)
    features = Features({HOOK: Array2D((context, width), "float32"), "token_ids": Sequence(Value("int32"), context)})
    ids = np.zeros((len(values), context), np.int32)
    parts = [
        Dataset.from_dict({HOOK: values[at : at + 16], "token_ids": ids[at : at + 16]}, features=features)
        for at in range(0, len(values), 16)
    ]
    concatenate_datasets(parts).save_to_disk(folder)
    store = ActivationsStore(
        model=None, dataset=None, streaming=False, hook_name=HOOK, hook_head_index=None, context_size=context,
        d_in=width, n_batches_in_buffer=64, total_training_tokens=10**9, store_batch_size_prompts=16,
        train_batch_size_tokens=batch_rows, prepend_bos=False, normalize_activations="none",
        device=torch.device("cpu"), dtype="float32", cached_activations_path=str(folder),
    )  # fmt: skip

    def epoch() -> int:
        return sum(len(store.next_batch()) for _ in range(len(words) // batch_rows))

    return epoch


def safetensors(words: np.ndarray, folder: Path, batch_rows: int, context: int) -> Callable[[], int]:
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    rows = torch.from_numpy(words).view(torch.bfloat16)
    for number, start in enumerate(range(0, len(rows), SHARD_ROWS)):
        save_file({"activations": rows[start : start + SHARD_ROWS].clone()}, folder / f"{number:05}.safetensors")
    paths = sorted(folder.iterdir())

    def epoch() -> int:
        num_rows = 0
        for number in torch.randperm(len(paths)).tolist():
            activations = load_file(paths[number])["activations"]
            order = torch.randperm(len(activations))
            for start in range(0, len(order), batch_rows):
                num_rows += len(activations[order[start : start + batch_rows]])
        return num_rows

    return epoch


LIBRARIES = {"sae_lens": sae_lens, "safetensors": safetensors}


def main() -> None:
    library, path, folder, batch_rows, context, threads = sys.argv[1:7]
    torch.set_num_threads(int(threads))
    warnings.simplefilter("ignore")
    epoch = LIBRARIES[library](np.load(path), Path(folder), int(batch_rows), int(context))
    rates = []
    for _ in range(EPOCHS + 1):
        began = time.perf_counter()
        num_rows = epoch()
        rates.append(num_rows / (time.perf_counter() - began))
    print(json.dumps({"library": library, "rows_per_s": statistics.median(rates[1:])}))


if __name__ == "__main__":
    main()
