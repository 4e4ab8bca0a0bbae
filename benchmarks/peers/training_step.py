"""One optimiser step of a peer's TopK SAE, timed. Runs in the peers' environment and prints one JSON line.

Usage: training_step.py LIBRARY ROWS.npy NUM_LATENTS K BATCH STEPS THREADS
Each library trains with the loop that its own trainer uses (its loss, its optimiser); only data loading is replaced by
slices of ROWS.npy, float32 [rows, d_model].
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch


def sparsify_step(d_model: int, num_latents: int, k: int, steps: int) -> Callable[[torch.Tensor], float]:
    """EleutherAI sparsify: SparseCoder with its default optimiser, signum."""
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    coder = SparseCoder(d_model, SparseCoderConfig(num_latents=num_latents, k=k), dtype=torch.float32)
    optimiser = SignSGD(coder.parameters(), lr=5e-3 / (num_latents / 2**14) ** 0.5)

    def step(rows: torch.Tensor) -> float:
        out = coder(rows)
        out.fvu.backward()
        optimiser.step()
        optimiser.zero_grad()
        if coder.cfg.normalize_decoder:
            coder.set_decoder_norm_to_unit_norm()
        return out.fvu.item()

    return step


def dictionary_learning_step(d_model: int, num_latents: int, k: int, steps: int) -> Callable[[torch.Tensor], float]:
    """saprmarks/dictionary_learning: TopKTrainer.update."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=max(steps, 10_000), activation_dim=d_model, dict_size=num_latents, k=k, layer=0, lm_name="none",
        device="cpu", seed=0,
    )  # fmt: skip
    index = iter(range(10**9))
    return lambda rows: float(trainer.update(next(index), rows))


def sae_lens_step(d_model: int, num_latents: int, k: int, steps: int) -> Callable[[torch.Tensor], float]:
    """SAELens: SAETrainer's own training step on a TopKTrainingSAE with sparse activations, its fastest setting."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    def no_rows() -> Iterator[torch.Tensor]:
        yield torch.zeros(1, d_model)

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_model, d_sae=num_latents, k=k))
    config = SAETrainerConfig(
        total_training_samples=10**9, device="cpu", autocast=False, lr=1e-3, lr_end=1e-4, lr_scheduler_name="constant",
        lr_warm_up_steps=0, adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1,
        train_batch_size_samples=4096, dead_feature_window=10**6, feature_sampling_window=10**6, n_checkpoints=0,
        checkpoint_path=None, save_final_checkpoint=False, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=no_rows())
    return lambda rows: trainer._train_step(sae=sae, sae_in=rows).loss.item()


STEPS = {"sparsify": sparsify_step, "dictionary_learning": dictionary_learning_step, "sae_lens": sae_lens_step}


def main() -> None:
    library, path, num_latents, k, batch, steps, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:8])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rows = torch.from_numpy(np.load(path))
    step = STEPS[library](rows.shape[1], num_latents, k, steps)
    seconds = []
    for index in range(steps + 1):
        start = index * batch % (len(rows) - batch + 1)
        began = time.perf_counter()
        step(rows[start : start + batch])
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"library": library, "median_s": statistics.median(seconds[1:]), "steps": steps}))


if __name__ == "__main__":
    main()
