"""TopK over shards of the latents is TopK over all of them, ties included."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import on_ranks

from pipeline.dictionaries.activations.topk import topk
from pipeline.training.sharded_topk import keep_largest
from pipeline.training.world import SingleWorld, World


def lowest_first(pre_BF: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row as dense codes, of those that tie the lowest latents."""
    order = pre_BF.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(pre_BF).scatter_(1, order, pre_BF.gather(1, order)).relu()


def over_shards(pre_BF: torch.Tensor, k: int, size: int) -> torch.Tensor:
    """Dense codes [B, F] of the shards side by side."""
    shards = pre_BF.tensor_split(size, dim=1)

    def work(world: World) -> torch.Tensor:
        own = shards[world.latents.rank]
        return keep_largest(topk(own, min(k, own.shape[1])), k, world.latents).dense(own.shape[1])

    return torch.cat(on_ranks(size, work, latent_shards=size), dim=1)


@settings(max_examples=25, deadline=None)
@given(
    size=st.sampled_from([2, 3, 4]),
    num_latents=st.integers(4, 30),
    k=st.integers(1, 30),
    num_rows=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_choice_is_that_of_all_latents(size: int, num_latents: int, k: int, num_rows: int, seed: int) -> None:
    k = min(k, num_latents)
    pre_BF = torch.randn(num_rows, num_latents, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(over_shards(pre_BF, k, size), topk(pre_BF, k).dense(num_latents))


def test_of_values_that_tie_the_lowest_latents_are_kept() -> None:
    # A shard has as many of each as fit into its own k slots, so that its choice among them is not asked for.
    pre_BF = torch.tensor([[1.0, 2, 2, 0, 2, 1, 2, 2], [2, 0, 0, 2, 0, 2, 2, 0], [-1, 3, -1, -1, -1, -1, -1, -1]])
    for k in (3, 4):
        assert torch.equal(over_shards(pre_BF, k, 2), lowest_first(pre_BF, k))


def test_one_shard_keeps_its_codes() -> None:
    codes = topk(torch.ones(2, 4), 2)
    assert keep_largest(codes, 2, SingleWorld()) is codes
