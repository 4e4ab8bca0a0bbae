"""Training's reader on a shuffled store: sequential reads, the same promises, and a shuffle as good as chance."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_store import shuffle_spec, write_source

from pipeline.evaluation.belonging import require
from pipeline.order.feed import FeedState, RowFeed
from pipeline.shuffling.prepare import prepare
from pipeline.shuffling.tasks import shuffle_here
from pipeline.store.reader import Store
from schemas.errors import SpecError
from schemas.evaluate import EvaluateSpec
from schemas.train import RowFilter, RowOrder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("shuffled")
    write_source(str(folder / "source"), 3000, chunk_rows=16, shard_rows=512)
    shuffle_here(prepare(shuffle_spec(str(folder / "source"), folder / "store")))
    return Store.open(str(folder / "store"))


def feed_of(
    store: Store, *, rank: int = 0, world_size: int = 1, mode: str = "sequential", window_chunks: int = 8
) -> RowFeed:
    order = RowOrder.model_validate({"mode": mode, "window_chunks": window_chunks})
    return RowFeed(store, ["resid"], rows=RowFilter(), order=order, batch_rows=100, rank=rank, world_size=world_size)


def eligible_rows(store: Store) -> np.ndarray:
    tokens = store.tokens()
    return np.flatnonzero(~tokens.held_out & (tokens.token_id != 0) & (tokens.position != 0))


@settings(deadline=None, max_examples=8)
@given(steps=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), max_size=3), last=st.integers(1, 4))
def test_every_row_once_across_kills_and_world_sizes(store: Store, steps: list[tuple[int, int]], last: int) -> None:
    seen, state = [], FeedState()
    for world_size, num_batches in [*steps, (last, 10**6)]:
        feeds = [feed_of(store, rank=rank, world_size=world_size) for rank in range(world_size)]
        iterators = [feed.iterate(state) for feed in feeds]
        for shares in islice(zip(*iterators, strict=True), num_batches):
            seen.append(np.concatenate([share.rows for share in shares]))
            state = shares[0].state_after
            for share in shares:
                words = store.gather("resid", share.rows)
                assert np.array_equal(share.activations["resid"].view(torch.uint16).numpy(), words)
            if state.epoch:
                break
        for iterator in iterators:
            iterator.close()
        if state.epoch:
            break
    assert np.array_equal(np.sort(np.concatenate(seen)), eligible_rows(store))


def test_reads_go_through_the_store_from_its_beginning_to_its_end(store: Store) -> None:
    epoch = feed_of(store, window_chunks=8).epoch(0)
    chunks = np.concatenate([epoch.window(index).chunks for index in range(epoch.num_windows)])
    assert np.array_equal(chunks, np.arange(len(chunks)))
    other = feed_of(store, window_chunks=8, mode="shuffled").epoch(0)
    assert not np.array_equal(np.concatenate([other.window(i).chunks for i in range(other.num_windows)]), chunks)


def test_narrow_windows_mix_as_well_as_chance(store: Store) -> None:
    """Of the store in its table's order the same narrow windows give many more pairs of one context."""
    feed = feed_of(store, window_chunks=8)
    batches = range(feed.batches_per_epoch - 1)
    excess = np.mean([feed.shuffle_quality(FeedState(0, batch)).excess for batch in batches])
    assert excess == pytest.approx(1, abs=0.25)
    shuffled = store.record.shuffled
    assert shuffled is not None
    plain = feed_of(Store.open(shuffled.store_url), window_chunks=8)
    assert plain.eligible.same_context_rate == pytest.approx(feed.eligible.same_context_rate, rel=1e-12)
    assert np.mean([plain.shuffle_quality(FeedState(0, batch)).excess for batch in batches]) > 10


def test_the_share_of_one_rank_is_measured_as_the_whole(store: Store) -> None:
    with_all, with_two = feed_of(store), feed_of(store, rank=1, world_size=2)
    whole, share = next(with_all.iterate()), next(with_two.iterate())
    assert with_all.quality_of(whole) == with_two.quality_of(share) == with_all.shuffle_quality()


def test_a_shuffled_store_is_for_training_only(store: Store) -> None:
    spec = EvaluateSpec(store=store.url, dictionaries="d", output=str(Path(store.url).parent))
    with pytest.raises(SpecError, match="use the store that it was made from"):
        require(store, [], spec)
