"""The feed over a real store: right rows, right numbers, any rank, any restart, and nothing left behind."""

from __future__ import annotations

import gc
import threading
import time
import uuid
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.order.feed import FeedState, RowFeed, scales
from pipeline.store.reader import Store
from pipeline.store.words import to_float32
from schemas.errors import CorruptionError, DivergenceError, HookPointError, SpecError
from schemas.train import RowFilter, RowOrder


def feed_of(store: Store, *, batch_rows: int = 50, window_chunks: int = 10, **options: Any) -> RowFeed:
    order = RowOrder(seed=3, window_chunks=window_chunks)
    return RowFeed(store, ["resid", "mlp_out"], rows=RowFilter(), order=order, batch_rows=batch_rows, **options)


def expected_rows(facts: Any) -> np.ndarray:
    tokens = facts.tokens
    return tokens.row[(tokens.position != 0) & (tokens.token_id != 3) & ~tokens.held_out]


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("headworks-rows")]


@pytest.mark.parametrize("window_chunks", [1, 3, 10, 1000])
@pytest.mark.parametrize("batch_rows", [1, 37, 256, 5000])
def test_an_epoch_is_every_row_once_with_its_numbers(
    counted: Any, store: Store, batch_rows: int, window_chunks: int
) -> None:
    feed = feed_of(store, batch_rows=batch_rows, window_chunks=window_chunks)
    wanted = expected_rows(counted)
    assert feed.rows_per_epoch == len(wanted)
    seen = []
    for batch in islice(feed.iterate(), feed.batches_per_epoch):
        np.testing.assert_array_equal(batch.rows, feed.epoch(0).batch(batch.batch))
        assert batch.global_rows == len(batch.rows)
        for hook, words in counted.words.items():
            got = batch.activations[hook].view(torch.int16).numpy().view(np.uint16)
            np.testing.assert_array_equal(got, words[batch.rows])
        seen.append(batch.rows)
    assert np.array_equal(np.sort(np.concatenate(seen)), wanted)
    assert batch.state_after == FeedState(1, 0)


def test_activations_say_which_row_they_are(store: Store) -> None:
    for batch in islice(feed_of(store).iterate(), 5):
        acts = batch.activations["resid"]
        assert ((acts[:, 0].long() - 1) * 64 + acts[:, 1].long()).tolist() == batch.rows.tolist()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_rows=st.integers(1, 400),
    window_chunks=st.integers(1, 70),
    attempts=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 12), st.integers(0, 3)), max_size=4),
    last_world_size=st.integers(1, 4),
)
def test_exactly_once_across_kills_and_worlds(
    counted: Any,
    store: Store,
    batch_rows: int,
    window_chunks: int,
    attempts: list[tuple[int, int, int]],
    last_world_size: int,
) -> None:
    """Attempts of some ranks that read some batches, lose the last few, and go on as another number of ranks."""
    total = feed_of(store, batch_rows=batch_rows, window_chunks=window_chunks).batches_per_epoch
    batches: list[np.ndarray] = []
    state = FeedState()
    for world_size, num_batches, num_lost in [*attempts, (last_world_size, total, 0)]:
        count = min(num_batches, total - len(batches))
        feeds = [
            feed_of(store, batch_rows=batch_rows, window_chunks=window_chunks, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        readers = [feed.iterate(state) for feed in feeds] if count else []
        states = [state]
        for _ in range(count):
            shares = [next(reader) for reader in readers]
            assert len({(share.state_after, share.global_rows, share.batch) for share in shares}) == 1
            assert sum(len(share.rows) for share in shares) == shares[0].global_rows
            batches.append(np.concatenate([share.rows for share in shares]))
            states.append(shares[0].state_after)
        for reader in readers:
            reader.close()
        if len(batches) < total:
            lost = min(num_lost, count)
            batches = batches[: len(batches) - lost]
            state = states[len(states) - 1 - lost]
    assert np.array_equal(np.sort(np.concatenate(batches)), expected_rows(counted))
    order = feed_of(store, batch_rows=batch_rows, window_chunks=window_chunks).epoch(0)
    for b, rows in enumerate(batches):
        assert np.array_equal(np.sort(rows), np.sort(order.batch(b)))


def test_every_rank_gets_every_batch_even_without_rows(store: Store) -> None:
    feeds = [feed_of(store, window_chunks=2, batch_rows=9, rank=rank, world_size=5) for rank in range(5)]
    readers = [feed.iterate() for feed in feeds]
    empty = 0
    for _ in range(feeds[0].batches_per_epoch + 3):
        shares = [next(reader) for reader in readers]
        assert len({share.state_after for share in shares}) == 1
        empty += sum(len(share.rows) == 0 for share in shares)
        assert all(share.activations["resid"].shape == (len(share.rows), 8) for share in shares)
    assert empty > 0


def test_a_rank_reads_only_its_own_chunks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[int] = set()
    original = Store.read_rows

    def spy(self: Store, hook: str, start: int, stop: int) -> Any:
        read.update(range(start // 16, -(-stop // 16)))
        return original(self, hook, start, stop)

    monkeypatch.setattr(Store, "read_rows", spy)
    seen = []
    for rank in range(2):
        read.clear()
        feed = feed_of(store, window_chunks=1000, batch_rows=5000, rank=rank, world_size=2)
        batches = feed.iterate()
        rows = next(batches).rows
        batches.close()
        # Behind the only window of epoch 0 the first of epoch 1 may have been begun.
        seen.append(set((rows // 16).tolist()))
        assert seen[-1] <= read
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(63))


def test_it_goes_on_from_epoch_to_epoch(store: Store) -> None:
    feed = feed_of(store, batch_rows=450)
    batches = list(islice(((b.epoch, b.batch, b.rows) for b in feed.iterate()), 7))
    assert [(epoch, batch) for epoch, batch, _ in batches] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]
    assert not np.array_equal(batches[0][2], batches[2][2])
    late = next(feed.iterate(FeedState(3, 0)))
    assert np.array_equal(late.rows, batches[6][2])


def test_batches_may_be_changed_in_place(store: Store) -> None:
    feed = feed_of(store, batch_rows=37)
    clean = [batch.activations["resid"].clone() for batch in islice(feed.iterate(), 40)]
    spoiled = []
    for batch in islice(feed.iterate(), 40):
        spoiled.append(batch.activations["resid"].clone())
        batch.activations["resid"].fill_(float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(clean, spoiled, strict=True))


def test_two_windows_and_a_batch_of_memory(store: Store) -> None:
    """Whatever the number of batches, the activations lie in the same few buffers."""
    feed = feed_of(store, batch_rows=20, window_chunks=4)
    addresses = {
        batch.activations["resid"].untyped_storage().data_ptr()
        for batch in islice(feed.iterate(), 3 * feed.batches_per_epoch)
    }
    assert len(addresses) == 3


@pytest.mark.parametrize("how", ["closed", "dropped", "broken"])
def test_the_thread_dies_with_its_iterator(store: Store, how: str) -> None:
    batches = feed_of(store, batch_rows=20, window_chunks=2).iterate()
    next(batches)
    assert reader_threads()
    if how == "closed":
        batches.close()
    elif how == "dropped":
        del batches
        gc.collect()
    else:
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt())
    assert not reader_threads()


def test_errors_of_the_reading_thread_reach_the_consumer(write_store: Callable[..., Any]) -> None:
    facts = write_store()
    store = facts.open()
    feed = feed_of(store, batch_rows=20, window_chunks=2)
    for shard in Path(facts.url).glob("activations/resid/c/*/0"):
        shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CorruptionError):
        list(islice(feed.iterate(), feed.batches_per_epoch))
    assert not reader_threads()


def test_leaving_does_not_wait_for_a_whole_window(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Store.read_rows

    def slow(self: Store, hook: str, start: int, stop: int) -> Any:
        time.sleep(0.02)
        return original(self, hook, start, stop)

    feed = feed_of(store, batch_rows=20, window_chunks=30)
    batches = feed.iterate()
    next(batches)
    monkeypatch.setattr(Store, "read_rows", slow)
    batches.close()
    started = time.monotonic()
    again = feed.iterate()
    next(again)
    loading = time.monotonic() - started
    started = time.monotonic()
    again.close()
    assert time.monotonic() - started < loading / 2


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes_come_as_they_are_stored(write_store: Callable[..., Any], dtype: str) -> None:
    facts = write_store(dtype=dtype)
    batch = next(feed_of(facts.open()).iterate())
    assert batch.activations["mlp_out"].dtype is getattr(torch, dtype)
    np.testing.assert_array_equal(batch.activations["mlp_out"].numpy(), facts.words["mlp_out"][batch.rows])


def test_a_remote_store_gives_the_same(write_store: Callable[..., Any]) -> None:
    """Where chunks are asked for several at a time."""
    local, remote = write_store(), write_store(f"memory://{uuid.uuid4().hex}")
    for ours, theirs in islice(zip(feed_of(local.open()).iterate(), feed_of(remote.open()).iterate(), strict=True), 9):
        assert np.array_equal(ours.rows, theirs.rows)
        assert all(torch.equal(ours.activations[hook], theirs.activations[hook]) for hook in ours.activations)


def test_held_out_rows_are_apart(counted: Any, store: Store) -> None:
    feed = feed_of(store, split="held_out", batch_rows=5000)
    rows = next(feed.iterate()).rows
    assert counted.tokens.held_out[rows].all()
    assert not np.intersect1d(rows, expected_rows(counted)).size


def test_shuffle_quality_of_a_store(counted: Any, store: Store) -> None:
    wide = feed_of(store, batch_rows=200, window_chunks=1000).shuffle_quality()
    narrow = feed_of(store, batch_rows=200, window_chunks=13).shuffle_quality()
    assert wide.ideal == narrow.ideal > 0
    assert 0.5 < wide.excess < 1.5
    assert narrow.excess > 2.5
    rows = feed_of(store, batch_rows=200, window_chunks=13).epoch(0).batch(0)
    contexts = rows - counted.tokens.position[rows]
    assert narrow.rate == (np.sum(contexts[:, None] == contexts[None, :]) - 200) / (200 * 199)


def test_scales_make_the_mean_norm_sqrt_d(counted: Any, store: Store) -> None:
    factors = scales(store, ["resid", "mlp_out"], "mean_norm")
    for hook, width in (("resid", 8), ("mlp_out", 4)):
        norms = np.linalg.norm(to_float32(counted.words[hook], "bfloat16").astype(np.float64), axis=1)
        assert factors[hook] * norms.mean() == pytest.approx(np.sqrt(width), rel=1e-9)
    assert scales(store, ["resid"], "none") == {"resid": 1.0}


def test_a_dead_hook_point_has_no_scale(write_store: Callable[..., Any]) -> None:
    store = write_store(spoil=dict.fromkeys(range(400), 0.0)).open()
    with pytest.raises(DivergenceError, match=r"mean norm of mlp_out .* got 0"):
        scales(store, ["mlp_out"], "mean_norm")


def test_identity_tells_feeds_apart(store: Store) -> None:
    ours = feed_of(store).identity
    assert ours == feed_of(store, rank=1, world_size=3).identity
    for other in (feed_of(store, batch_rows=51), feed_of(store, window_chunks=9), feed_of(store, split="all")):
        assert ours != other.identity


@pytest.mark.parametrize("start", [FeedState(0, 10_000), FeedState(-1, 0), FeedState(0, -1)])
def test_a_state_of_another_feed_is_refused(store: Store, start: FeedState) -> None:
    with pytest.raises(SpecError, match="is no state of a feed"):
        feed_of(store).iterate(start)


def test_what_cannot_be_read_is_refused(store: Store) -> None:
    options: dict[str, Any] = {"rows": RowFilter(), "order": RowOrder(), "batch_rows": 10}
    with pytest.raises(HookPointError, match="did you mean 'resid'"):
        RowFeed(store, ["residd"], **options)
    with pytest.raises(SpecError, match="0 <= rank < world_size"):
        RowFeed(store, ["resid"], **options, rank=2, world_size=2)
    nothing = RowFilter(exclude_positions=list(range(12)))
    with pytest.raises(SpecError, match=r"no row of .* is left"):
        RowFeed(store, ["resid"], **{**options, "rows": nothing})
