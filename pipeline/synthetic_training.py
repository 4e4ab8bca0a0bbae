"""Train a dictionary on rows that are generated as they are wanted: for data whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pipeline.dictionaries import initialise
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.kernels import choose
from pipeline.training.schedule import learning_rate_factor
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import SingleWorld
from schemas.dictionary import DictionarySpec
from schemas.train import Schedule


def train_on_samples(
    spec: DictionarySpec,
    sample: Callable[[int], Mapping[str, torch.Tensor]],
    widths: Mapping[str, int],
    *,
    num_steps: int,
    batch_rows: int,
    scales: Mapping[str, float] | None = None,
) -> Dictionary:
    """A dictionary trained on the CPU, on fresh rows in every step; the rate has no warm-up and falls at the end.

    ``sample(n)`` gives further n rows of each hook point of ``spec``, float32 [n, width]; ``widths`` are theirs.
    ``scales``: what each hook point is multiplied by; 1 by default, so that norms of decoders can be compared with the
    truth. Equal specs, samples and numbers of threads give equal weights.

    Raises:
        SpecError: ``widths`` do not name the sources of the spec, in its order, or it has targets of its own.
    """
    scales = dict.fromkeys(widths, 1.0) if scales is None else dict(scales)
    dictionary = Dictionary(spec, dict(widths), dict(widths), scales)
    initialise.fill(dictionary, {point: torch.zeros(width) for point, width in widths.items()})
    kernels = choose(torch.device("cpu"), torch.float32, torch.get_num_threads())
    trainer, world = DictionaryTrainer(dictionary, kernels, max_gradient_norm=1.0), SingleWorld()
    schedule = Schedule(warmup_fraction=0.0)
    for step in range(num_steps):
        trainer.step(
            sample(batch_rows),
            num_rows=batch_rows,
            factor=learning_rate_factor(schedule, step, num_steps),
            progress=step / num_steps,
            world=world,
        )
    return dictionary
