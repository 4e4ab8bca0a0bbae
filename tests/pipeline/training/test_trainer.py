"""One step: what it measures, how it counts the dead, and that rows may come in any blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import stepping
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.dictionaries import initialise
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training import trainer as trainer_module
from pipeline.training.kernels import TorchKernels
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import SingleWorld
from schemas.activation import TopK
from schemas.dictionary import DictionarySpec

D, F, B = 8, 20, 32


def build(max_gradient_norm: float = 1.0) -> DictionaryTrainer:
    activation = TopK(k=2, aux_k=4, dead_after_tokens=2 * B)
    spec = DictionarySpec(name="d", sources=["in"], num_latents=F, activation=activation, learning_rate=1e-2)
    dictionary = Dictionary(spec, {"in": D}, {"in": D}, {"in": 1.0})
    initialise.fill(dictionary, {"in": torch.zeros(D)})
    return DictionaryTrainer(dictionary, TorchKernels(), max_gradient_norm=max_gradient_norm)


def rows(seed: int) -> dict[str, torch.Tensor]:
    return {"in": torch.randn(B, D, generator=torch.Generator().manual_seed(seed))}


def step(trainer: DictionaryTrainer, seed: int) -> dict[str, float]:
    return trainer.step(rows(seed), num_rows=B, factor=1.0, progress=0.0, world=SingleWorld())


def test_figures_are_those_of_the_batch() -> None:
    trainer = build()
    with torch.no_grad():
        x = rows(0)["in"]
        expected = float((trainer.dictionary(x) - x).square().sum() / (x - x.mean(0)).square().sum())
    metrics = step(trainer, 0)
    assert metrics["fvu"] == pytest.approx(expected, rel=1e-5)
    assert metrics["loss"] == metrics["fvu"]
    assert metrics["l0"] <= 2


def test_dead_latents_are_counted_in_rows_and_revived_by_the_auxiliary_loss() -> None:
    trainer = build()
    with torch.no_grad():
        trainer.dictionary.b_enc[:5] = -3.0
    seen = [step(trainer, seed) for seed in range(3)]
    assert [metrics["dead_share"] for metrics in seen[:2]] == [0.0, 0.0]
    assert seen[2]["dead_share"] >= 5 / F
    assert trainer.rows_since_fired[:5].tolist() == [3 * B] * 5
    before = trainer.dictionary.decoder[:5].clone()
    step(trainer, 3)
    assert not torch.equal(trainer.dictionary.decoder[:5], before)


def test_clipping_bounds_the_gradient_not_the_figure() -> None:
    free, clipped = build(0.0), build(1e-3)
    assert step(free, 0)["grad_norm"] == step(clipped, 0)["grad_norm"]
    assert clipped._gradients.norm() == pytest.approx(1e-3, rel=1e-4)


def test_blocks_of_rows_do_not_change_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build()
    first = step(whole, 0)
    monkeypatch.setattr(trainer_module, "BLOCK_ELEMENTS", 5 * F)
    blocks = build()
    assert step(blocks, 0) == pytest.approx(first, rel=1e-5)
    torch.testing.assert_close(blocks._gradients, whole._gradients, rtol=1e-4, atol=1e-7)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation of torch returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))])
        return out


@pytest.mark.parametrize("kind", stepping.KINDS)
def test_a_batch_of_any_size_takes_no_more_memory_than_its_rows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "BLOCK_ELEMENTS", 20 * 40)
    dictionary = stepping.build(stepping.KINDS[kind])
    trainer = DictionaryTrainer(dictionary, TorchKernels(), max_gradient_norm=1.0)
    x, _ = stepping.rows(dictionary, num_rows=2000)
    with Largest() as largest:
        trainer.step({"a": x}, num_rows=2000, factor=1.0, progress=0.3, world=SingleWorld(), row_ids=np.arange(2000))
    # Six channels a row, or the latents that a selection over the batch keeps of it; the pre-activations of all rows
    # would be 40 numbers a row.
    assert 2000 * 6 <= largest.numel < 2000 * 10


def test_a_share_without_rows_takes_part() -> None:
    trainer = build()
    before = trainer.dictionary.encoder.detach().clone()
    metrics = trainer.step({"in": torch.zeros(0, D)}, num_rows=B, factor=1.0, progress=0.0, world=SingleWorld())
    assert metrics["l0"] == 0
    assert torch.equal(trainer.dictionary.encoder, before)
