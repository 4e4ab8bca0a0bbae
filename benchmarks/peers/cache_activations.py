"""SAELens' CacheActivationsRunner on a local model folder, timed. Runs in the peers' environment, prints one JSON line.

Usage: cache_activations.py MODEL_FOLDER TOKENS.npy HOOK_MODULE D_MODEL BATCH_CONTEXTS OUTPUT_FOLDER THREADS
TOKENS.npy is int64 [contexts, context_length]. The model folder may hold only the layers up to the hook point: that is
the fastest way to run it, since its early stop is not available for Hugging Face models.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from datasets import Dataset
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig


def main() -> None:
    folder, path, hook, d_model, batch, output, threads = sys.argv[1:8]
    torch.set_num_threads(int(threads))
    tokens = np.load(path)
    config = CacheActivationsRunnerConfig(
        dataset_path="local", model_name=folder, model_class_name="AutoModelForCausalLM", hook_name=hook,
        d_in=int(d_model), model_batch_size=int(batch), training_tokens=tokens.size, context_size=tokens.shape[1],
        new_cached_activations_path=output, shuffle=False, dtype="float32", device="cpu", streaming=False,
        buffer_size_gb=0.02, prepend_bos=False,
    )  # fmt: skip
    runner = CacheActivationsRunner(config, override_dataset=Dataset.from_dict({"input_ids": tokens.tolist()}))
    began = time.perf_counter()
    with torch.inference_mode():
        dataset = runner.run()
    seconds = time.perf_counter() - began
    print(json.dumps({"library": "sae_lens", "tokens": len(dataset) * tokens.shape[1], "seconds": seconds}))


if __name__ == "__main__":
    main()
