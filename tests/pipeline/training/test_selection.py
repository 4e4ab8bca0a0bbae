"""The k largest of a batch that lies on several ranks: exactly those of a sort of the whole, ties and all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import on_ranks, shares

from pipeline.training.batch_selection import BatchSelection
from pipeline.training.kernels import not_below
from pipeline.training.selection import kth_largest
from pipeline.training.world import SingleWorld, World

POSITIVE = st.floats(2.0**-126, 2.0**127, width=32)


@settings(deadline=None)
@given(st.lists(POSITIVE, min_size=1, max_size=60), st.data())
def test_it_is_the_kth_of_a_sort(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values) + 3))
    found, count = kth_largest(torch.tensor(values), k, SingleWorld())
    assert float(found) == sorted(values, reverse=True)[min(k, len(values)) - 1]
    assert count == len(values)


def test_nothing_has_no_largest() -> None:
    found, count = kth_largest(torch.zeros(0), 3, SingleWorld())
    assert (float(found), count) == (0.0, 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2, 4]))
def test_ranks_agree(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(50, generator=generator).exp()
    values[10:20] = values[5]
    k = int(torch.randint(1, 55, (), generator=generator))

    def work(world: World) -> float:
        return float(kth_largest(values[shares(50, size)[world.rank]], k, world)[0])

    expected = float(values.sort(descending=True).values[min(k, 50) - 1])
    assert on_ranks(size, work) == [expected] * size


F, B = 30, 24


def select(
    selection: BatchSelection, blocks: Sequence[torch.Tensor], num_kept: int, bound: float, world: World
) -> bool:
    finders = [partial(not_below, pre) for pre in blocks]
    return selection.select(finders, [len(pre) for pre in blocks], num_kept, bound, world)


def brute(pre: torch.Tensor, num_kept: int) -> torch.Tensor:
    positive = pre.relu()
    least = positive.flatten().sort(descending=True).values[num_kept - 1]
    return positive * (positive >= least) * (positive > 0)


@pytest.mark.parametrize("bound", [0.0, 0.4, 50.0])
@pytest.mark.parametrize("block", [1, 7, B])
@pytest.mark.parametrize("num_kept", [1, 40, 200, F * B])
def test_the_batch_selection_is_that_of_a_sort(num_kept: int, block: int, bound: float) -> None:
    pre = torch.randn(B, F, generator=torch.Generator().manual_seed(num_kept))
    pre[3] = pre[4]  # ties, two of everything
    pre[5] = -1
    selection = BatchSelection(F)
    blocks = pre.split(block)
    enough = select(selection, blocks, num_kept, bound, SingleWorld())
    assert enough == (bound == 0 or int((pre >= bound).sum()) >= num_kept)
    if not enough:
        assert select(selection, blocks, num_kept, 0.0, SingleWorld())
    expected = brute(pre, num_kept)
    assert torch.equal(torch.cat([selection[index].dense(F) for index in range(len(blocks))]), expected)
    assert selection.threshold == float(expected[expected > 0].min())


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_keep_what_one_keeps(size: int) -> None:
    pre = torch.randn(B, F, generator=torch.Generator().manual_seed(1))
    # One rank has nearly all of the largest.
    pre[: B // 5] += 3

    def work(world: World) -> torch.Tensor:
        selection = BatchSelection(F)
        mine = pre[shares(B, size)[world.rank]].split(4)
        # A bound that too few values exceed is found to be one by all ranks together.
        assert not select(selection, mine, 60, 5.5, world)
        assert select(selection, mine, 60, 0.5, world)
        return torch.cat([selection[index].dense(F) for index in range(len(mine))])

    assert torch.equal(torch.cat(on_ranks(size, work)), brute(pre, 60))
