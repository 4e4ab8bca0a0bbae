"""A dictionary whose latents lie on several ranks takes the steps of one that lies on one, of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stepping import KINDS, build, on_ranks, shard_of, shares, slice_of

from pipeline.training.kernels import TorchKernels
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import SingleWorld, World

B, F, NUM_STEPS = 60, 40, 6
WANTED: dict[str, dict[str, Any]] = {name: {"activation": activation} for name, activation in KINDS.items()} | {
    "tied": {"tied": True, "activation": KINDS["topk"]},
    "tied_l1": {"tied": True, "activation": KINDS["relu_l1"]},
    "crosscoder": {"sources": ["a", "b"], "activation": KINDS["batch_topk"]},
    "target_gates": {
        "sources": ["a", "b"],
        "activation": {
            "kind": "jumprelu", "gate": "per_target", "penalty": {"kind": "tanh_quad", "coefficient": 0.05},
        },
    },
    "skip_transcoder": {"targets": ["b"], "skip": True, "activation": KINDS["multi_topk"]},
    "skip_gated": {"targets": ["b"], "skip": True, "activation": KINDS["gated"]},
    "signum": {"optimiser": {"kind": "signum"}, "learning_rate": 1e-3, "activation": KINDS["topk"]},
}  # fmt: skip


def train_steps(wanted: dict[str, Any], world: World) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Steps on this rank's rows and latents, in float64, where the order of additions hardly shows."""
    activation = dict(wanted["activation"])
    if "dead_after_tokens" in activation:
        activation["dead_after_tokens"] = 2 * B
    whole = build(**{**wanted, "activation": activation})
    with torch.no_grad():
        # Dead from the start, on some shards and not on all: AuxK and resampling have something to do.
        whole.b_enc[[0, 1, 2, 3, 12, 39]] = -20
    trainer = DictionaryTrainer(shard_of(whole, world.latents), TorchKernels(), max_gradient_norm=1.0)
    metrics = []
    for step in range(NUM_STEPS):
        generator = torch.Generator().manual_seed(step)
        acts = {point: torch.randn(B, 6, generator=generator, dtype=torch.float64) for point in ("a", "b")}
        mine = shares(B, world.rows.size)[world.rows.rank]
        metrics.append(
            trainer.step(
                {point: values[mine][:, : whole.d_source.get(point, whole.d_target.get(point))]
                 for point, values in acts.items()},
                num_rows=B, factor=1.0, progress=step / NUM_STEPS, world=world,
                row_ids=torch.arange(step * B, (step + 1) * B).numpy()[mine],
            )
        )  # fmt: skip
    return metrics, {name: tensor.clone() for name, tensor in trainer.state().items()}


@pytest.mark.parametrize("name", WANTED)
def test_shards_are_one_dictionary(name: str) -> None:
    wanted = WANTED[name]
    expected_metrics, expected = train_steps(wanted, SingleWorld())
    if "dead_after_tokens" in wanted["activation"]:
        assert expected_metrics[2]["dead_share"] >= 6 / F
    if name == "relu_l1_unit_norm":
        assert expected["objective.num_resamplings"] == 2
        assert (expected["weights.b_enc"][[0, 12, 39]] > -1).all()
    for size, latent_shards in ((2, 2), (4, 2), (3, 3)):
        found = on_ranks(size, lambda world: train_steps(wanted, world), latent_shards=latent_shards)
        for rank, (metrics, state) in enumerate(found):
            for one, other in zip(metrics, expected_metrics, strict=True):
                assert one == pytest.approx(other, rel=1e-8, abs=1e-10)
            shard = rank % latent_shards
            mine = range(F * shard // latent_shards, F * (shard + 1) // latent_shards)
            for key, tensor in slice_of(expected, F, mine).items():
                torch.testing.assert_close(state[key], tensor, rtol=1e-7, atol=1e-9, msg=f"{key} of rank {rank}")
