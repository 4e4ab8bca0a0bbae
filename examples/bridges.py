"""Can linear maps between the streams of a dense and a weight-sparse model be trained so that one model goes on where
the other stopped (Gao et al. 2025, arXiv 2511.13653)?

    make study-weight-sparse                              trains the pair
    python examples/bridges.py DENSE SPARSE TOKENS        folders of the two models, and the token table of one

The result is kept in examples/results/bridges.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from save_result import save
from torch import Tensor

from pipeline.circuits.bridges import Bridges, divergence
from pipeline.circuits.network import load_decoder
from pipeline.networks import HeadworksDecoderForCausalLM
from pipeline.pretraining.contexts import Contexts, read_contexts
from pipeline.tokens.reading import TokenTable
from schemas.model import ModelSpec

HELD_OUT, RATE = 32, 0.003


def load(folder: str) -> HeadworksDecoderForCausalLM:
    """To look at, not to train."""
    network = load_decoder(ModelSpec(path=folder, kind="causal_lm"))
    network.requires_grad_(False)
    network.train(False)
    return network


def batches(contexts: Contexts, size: int, number: int, seed: int) -> Iterator[Tensor]:
    """Token ids [size, L] of whole contexts, drawn anew for each batch."""
    width = int(contexts.lengths.max())
    whole = np.flatnonzero(contexts.lengths == width)
    generator = np.random.Generator(np.random.Philox(seed))
    for _ in range(number):
        ids, _ = contexts.take(generator.choice(whole, size, replace=False), width)
        yield torch.from_numpy(ids)


@torch.no_grad()
def differing(dense: HeadworksDecoderForCausalLM, sparse: HeadworksDecoderForCausalLM, ids: Tensor) -> float:
    """KL of the dense model's prediction and the sparse one's own, in nats a token: no bridge is needed for that."""
    return float(divergence(dense(ids).logits, sparse(ids).logits))


@torch.no_grad()
def measured(bridges: Bridges, ids: Tensor) -> dict[str, float]:
    """The terms of the paper's loss, each the mean over bridges."""
    losses = bridges.losses(ids)
    return {name: float(value) / len(bridges.points) for name, value in vars(losses).items()}


def bridged(
    dense: HeadworksDecoderForCausalLM, sparse: HeadworksDecoderForCausalLM, table: str, *, steps: int, batch: int
) -> dict[str, Any]:
    """Train bridges on the table's text; their losses on its held-out contexts before, on the way and behind."""
    splits = read_contexts(TokenTable.open(table), dense.config.vocab_size)
    held_out = next(batches(splits.held_out, HELD_OUT, 1, seed=1))
    torch.manual_seed(0)
    bridges = Bridges(dense, sparse)
    optimiser = torch.optim.Adam(bridges.parameters(), lr=RATE)
    course = {0: measured(bridges, held_out)}
    for step, ids in enumerate(batches(splits.train, batch, steps, seed=2), start=1):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, step / 20, (steps - step + 1) / (0.5 * steps))
        optimiser.zero_grad()
        bridges.losses(ids).total().backward()
        optimiser.step()
        if step in {steps // 4, steps // 2, steps}:
            course[step] = measured(bridges, held_out)
            print(step, course[step], flush=True)
    return {
        "points": bridges.points,
        "tokens": steps * batch * held_out.shape[1],
        "kl_of_models": differing(dense, sparse, held_out),
        "course": course,
    }


def main() -> None:
    """Train bridges, print how they fare and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", help="folder of the dense model")
    parser.add_argument("sparse", help="folder of the sparse model")
    parser.add_argument("tokens", help="token table that one of them was trained on")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=4, help="contexts in a step")
    given = parser.parse_args()
    started = time.perf_counter()
    found = bridged(load(given.dense), load(given.sparse), given.tokens, steps=given.steps, batch=given.batch)
    print(save("bridges", {**found, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
