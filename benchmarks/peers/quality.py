"""A peer's dictionary, trained on given batches and scored on held-out rows. Runs in the peers' environment.

Usage: quality.py LIBRARY FOLDER RATE DECAY STEPS BATCH LATENTS K DEAD_AFTER THREADS
FOLDER has train.npy and held_out.npy, float32 [rows, d_model], scaled to a mean norm of sqrt(d_model), and order.npy,
the training rows of each step. Each library trains with its own trainer's loss and optimiser; where it knows schedules,
with a linear warm-up over 10 % of the steps, as ours has it, and a linear decay over the last DECAY of them. Auxiliary
loss for latents that did not fire in DEAD_AFTER rows where it knows one (its own default is millions of rows, more than
this run has).
Prints one JSON line: fvu, dead (latents that no held-out row has on), l0, seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

Step = Callable[[int, torch.Tensor], None]
Model = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Rows -> (codes [B, F], reconstructions)."""
WARMUP = 0.1


def dictionary_learning(
    d: int, latents: int, k: int, rate: float, decay: float, steps: int, dead_after: int
) -> tuple[Step, Model]:
    """saprmarks/dictionary_learning: TopKTrainer."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=steps, activation_dim=d, dict_size=latents, k=k, layer=0, lm_name="none", lr=rate, device="cpu", seed=0,
        warmup_steps=int(WARMUP * steps), decay_start=int((1 - decay) * steps),
    )  # fmt: skip
    trainer.dead_feature_threshold = dead_after

    def model(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = trainer.ae.encode(rows, use_threshold=False)
        return codes, trainer.ae.decode(codes)

    return trainer.update, model


def sparsify(
    d: int, latents: int, k: int, rate: float, decay: float, steps: int, dead_after: int
) -> tuple[Step, Model]:
    """EleutherAI sparsify: SparseCoder and its Trainer's steps, signum made schedule-free (so without ``decay``), AuxK
    switched on."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    coder = SparseCoder(d, SparseCoderConfig(num_latents=latents, k=k), dtype=torch.float32)
    optimiser = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=rate), momentum=0.95)
    optimiser.train()
    since = torch.zeros(latents, dtype=torch.int64)

    def take(step: int, rows: torch.Tensor) -> None:
        if step == 0:
            coder.b_dec.data = rows.mean(0)
        optimiser.train()
        if coder.cfg.normalize_decoder:
            coder.set_decoder_norm_to_unit_norm()
        out = coder(rows, dead_mask=since >= dead_after)
        (out.fvu + out.auxk_loss / 32).backward()
        if coder.cfg.normalize_decoder:
            coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        since.add_(len(rows))
        since[out.latent_indices.flatten().unique()] = 0

    def model(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        optimiser.eval()
        out = coder(rows)
        codes = torch.zeros(len(rows), latents).scatter_(1, out.latent_indices, out.latent_acts)
        return codes, out.sae_out

    return take, model


def sae_lens(
    d: int, latents: int, k: int, rate: float, decay: float, steps: int, dead_after: int
) -> tuple[Step, Model]:
    """SAELens: SAETrainer's training step on a TopKTrainingSAE."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    def no_rows() -> Iterator[torch.Tensor]:
        yield torch.zeros(1, d)

    batch = 1024
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=latents, k=k))
    config = SAETrainerConfig(
        total_training_samples=steps * batch, device="cpu", autocast=False, lr=rate, lr_end=0.0,
        lr_scheduler_name="constant", lr_warm_up_steps=int(WARMUP * steps), adam_beta1=0.9, adam_beta2=0.999,
        lr_decay_steps=int(decay * steps), n_restart_cycles=1, train_batch_size_samples=batch,
        dead_feature_window=max(1, dead_after // batch), feature_sampling_window=10**6, n_checkpoints=0,
        checkpoint_path=None, save_final_checkpoint=False, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=no_rows())

    def take(step: int, rows: torch.Tensor) -> None:
        trainer._train_step(sae=sae, sae_in=rows)
        trainer.n_training_steps += 1

    def model(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = sae.encode(rows)
        codes = codes.to_dense() if codes.is_sparse else codes
        return codes, sae.decode(codes)

    return take, model


LIBRARIES = {"sparsify": sparsify, "dictionary_learning": dictionary_learning, "sae_lens": sae_lens}


@torch.no_grad()
def score(model: Model, rows: torch.Tensor, latents: int) -> dict[str, float]:
    error, active = 0.0, 0
    fired = torch.zeros(latents, dtype=torch.bool)
    for part in rows.split(2048):
        codes, got = model(part)
        fired |= (codes > 0).any(0)
        active += int((codes > 0).sum())
        error += float((got - part).double().square().sum())
    variance = float((rows.double() - rows.double().mean(0)).square().sum())
    return {"fvu": error / variance, "dead": int((~fired).sum()), "l0": active / len(rows)}


def main() -> None:
    library, folder, rate, decay = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    steps, batch, latents, k, dead_after, threads = map(int, sys.argv[5:11])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    train, held_out = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("train", "held_out"))
    order = torch.from_numpy(np.load(folder / "order.npy"))
    take, model = LIBRARIES[library](train.shape[1], latents, k, rate, decay, steps, dead_after)
    began = time.perf_counter()
    for step in range(steps):
        take(step, train[order[step * batch : (step + 1) * batch]])
    seconds = time.perf_counter() - began
    print(json.dumps({**score(model, held_out, latents), "seconds": seconds}))


if __name__ == "__main__":
    main()
