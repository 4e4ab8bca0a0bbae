"""Resampling: exactly the dead latents change, as the post says, at rows drawn by loss, whichever rank has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stepping import build, on_ranks, shares

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.kernels import TorchKernels
from pipeline.training.objective import StepFacts
from pipeline.training.resampling import Resampler, draw_rows
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import SingleWorld, World
from schemas.activation import ReluL1UnitNorm

B, F, D = 64, 40, 6
ACTIVATION = {"kind": "relu_l1_unit_norm", "dead_after_tokens": B, "resample_at": [0.5]}
DEAD = [3, 7, 8]


def facts_of(world: World, row_ids: np.ndarray[Any, Any], num_steps: int = 9) -> StepFacts:
    return StepFacts(B, num_steps, 0.5, torch.zeros(F, dtype=torch.bool), 0, world, row_ids)


def resample(
    dictionary: Dictionary, x: torch.Tensor, loss: torch.Tensor, facts: StepFacts
) -> list[tuple[torch.nn.Parameter, list[int]]]:
    """The moments that were cleared."""
    dead = torch.zeros(F, dtype=torch.bool)
    dead[DEAD] = True
    assert isinstance(dictionary.spec.activation, ReluL1UnitNorm)
    resampler = Resampler(dictionary, dictionary.spec.activation)
    assert resampler.is_due(facts)
    cleared: list[tuple[torch.nn.Parameter, list[int]]] = []
    with torch.no_grad():
        resampler.resample(x, loss, dead, facts, lambda parameter, rows: cleared.append((parameter, rows.tolist())))
    assert not resampler.is_due(facts)
    return cleared


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = torch.zeros(B, dtype=torch.float64)
    loss[[5, 40, 41]] = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    return x, loss


def test_exactly_the_dead_latents_start_again() -> None:
    dictionary, before = build(ACTIVATION), build(ACTIVATION)
    x, loss = batch()
    cleared = resample(dictionary, x, loss, facts_of(SingleWorld(), np.arange(B)))
    others = [latent for latent in range(F) if latent not in DEAD]
    for name in ("encoder", "decoder", "b_enc"):
        assert torch.equal(getattr(dictionary, name)[others], getattr(before, name)[others])
    assert torch.equal(dictionary.b_dec, before.b_dec)
    # Only three rows have a loss, so these are drawn: decoder rows are their directions, less b_dec.
    directions = torch.nn.functional.normalize(x[[5, 40, 41]] - dictionary.b_dec, dim=1)
    assert torch.allclose((dictionary.decoder[DEAD] @ directions.T).amax(0), torch.ones(3, dtype=torch.float64))
    norm = 0.2 * before.encoder[others].norm(dim=1).mean()
    torch.testing.assert_close(dictionary.encoder[DEAD], dictionary.decoder[DEAD] * norm)
    assert not dictionary.b_enc[DEAD].any()
    assert [id(parameter) for parameter, _ in cleared] == [
        id(parameter) for parameter in (dictionary.encoder, dictionary.decoder, dictionary.b_enc)
    ]
    assert all(rows == DEAD for _, rows in cleared)


def test_the_trainer_forgets_their_moments_alone() -> None:
    trainer = DictionaryTrainer(build(ACTIVATION), TorchKernels(), max_gradient_norm=1.0)
    with torch.no_grad():
        trainer.dictionary.b_enc[DEAD] = -50
    for step, progress in enumerate((0.0, 0.2, 0.5)):
        x = torch.randn(B, D, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        if step == 2:
            trainer.state()["exp_avg.decoder"][DEAD] = 1.0
        trainer.step(
            {"a": x}, num_rows=B, factor=1.0, progress=progress, world=SingleWorld(), row_ids=np.arange(B) + B * step
        )
    state = trainer.state()
    assert int(state["objective.num_resamplings"]) == 1
    for name in ("exp_avg", "exp_avg_sq"):
        for parameter in ("encoder", "decoder", "b_enc"):
            assert not state[f"{name}.{parameter}"][DEAD].any()
            assert state[f"{name}.{parameter}"].any()
    torch.testing.assert_close(state["weights.decoder"].norm(dim=1), torch.ones(F, dtype=torch.float64))


@pytest.mark.parametrize("size", [2, 4])
def test_the_draw_does_not_depend_on_the_ranks(size: int) -> None:
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = x.square().sum(1)
    ids = np.arange(B) * 17

    def work(world: World) -> torch.Tensor:
        mine = shares(B, world.size)[world.rank]
        dictionary = build(ACTIVATION)
        resample(dictionary, x[mine], loss[mine], facts_of(world, ids[mine]))
        return dictionary.decoder.detach().clone()

    expected = work(SingleWorld())
    assert all(torch.equal(found, expected) for found in on_ranks(size, work))


def test_rows_are_drawn_in_proportion_to_their_squared_loss() -> None:
    dictionary = build(ACTIVATION)
    assert isinstance(dictionary.spec.activation, ReluL1UnitNorm)
    resampler = Resampler(dictionary, dictionary.spec.activation)
    x, loss = torch.arange(3.0)[:, None].repeat(1, D), torch.tensor([1.0, 2.0, 3.0])
    drawn = np.zeros(3)
    for step in range(3000):
        priority = resampler._priority(loss, facts_of(SingleWorld(), np.array([4, 90, 7]), step))
        drawn[int(draw_rows(x, priority, 1, SingleWorld())[0, 0])] += 1
    # Probabilities 1/14, 4/14, 9/14; five standard errors are below 0.045.
    assert np.abs(drawn / 3000 - np.array([1, 4, 9]) / 14).max() < 0.045


def test_more_dead_latents_than_rows_wait() -> None:
    x = torch.ones(2, D)
    assert len(draw_rows(x, torch.tensor([1.0, 2.0]), 2, SingleWorld())) == 2
    assert len(draw_rows(x, torch.tensor([1.0, 1.0]), 1, SingleWorld())) == 1
    assert len(draw_rows(x[:0], torch.zeros(0), 0, SingleWorld())) == 0
