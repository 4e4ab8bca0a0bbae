"""A feed over a store that is still being written: the same rows in the same order, whenever units come."""

from __future__ import annotations

import random
import threading
import time
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
from pipeline.order.live import LedgerBlocks
from pipeline.store import arriving
from pipeline.store.arriving import ArrivingStore
from pipeline.store.leases import held
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.rows import TokenRows
from pipeline.store.writer import StoreWriter
from schemas.errors import IncompleteError, JobError
from schemas.pipeline import JOB_ADAPTER
from schemas.train import RowFilter, RowOrder

HOOKS = ["resid", "mlp_out"]


class Table:
    """All token rows, as a token table has them."""

    def __init__(self, tokens: TokenRows) -> None:
        self._tokens = tokens

    def rows(self, start: int, stop: int) -> TokenRows:
        return self._tokens.slice(start, stop)


def following(facts: Any, url: str, **options: Any) -> ArrivingStore:
    """The store at ``url``, which is to become that of ``facts``."""
    record = facts.open().record
    blocks = LedgerBlocks(url, HOOKS, num_rows=len(facts.tokens), **options)
    return ArrivingStore(url, record, Table(facts.tokens), blocks, HOOKS, len(facts.tokens))


def feed_of(
    store: Any, *, batch_rows: int = 50, window_chunks: int = 10, mode: str = "shuffled", **options: Any
) -> RowFeed:
    order = RowOrder.model_validate({"seed": 3, "window_chunks": window_chunks, "mode": mode})
    options = {"first_in_order": True} | options
    return RowFeed(store, HOOKS, rows=RowFilter(), order=order, batch_rows=batch_rows, **options)


def expected_rows(facts: Any) -> np.ndarray[Any, Any]:
    tokens = facts.tokens
    return np.asarray(tokens.row[(tokens.position != 0) & (tokens.token_id != 3) & ~tokens.held_out])


@pytest.fixture
def grow(counted: Any, tmp_path: Path) -> Callable[..., tuple[str, threading.Thread]]:
    """A store that a thread writes, unit by unit in any order, and that is not there at first."""

    def write(units: list[int], pause_s: float = 0.0) -> None:
        done = counted.open()
        time.sleep(pause_s)
        passed = next(iter(done.passes.values()))
        writer = StoreWriter.open(str(tmp_path / "growing"), done.record, passed, num_rows=done.num_rows)
        for unit in units:
            time.sleep(pause_s)
            start, stop = writer.unit_rows(unit)
            arrays = {hook: words[start:stop] for hook, words in counted.words.items()}
            tokens = counted.tokens.slice(start, stop)
            writer.write_unit(unit, arrays, tokens, worker="test", attempt=0, seconds={})

    def begin(seed: int = 0, **options: Any) -> tuple[str, threading.Thread]:
        units = list(range(counted.open().num_units))
        random.Random(seed).shuffle(units)
        thread = threading.Thread(target=write, args=(units,), kwargs=options)
        thread.start()
        return str(tmp_path / "growing"), thread

    return begin


@pytest.mark.parametrize("world_size", [1, 3])
def test_rows_wait_for_their_units_and_their_order_does_not(
    counted: Any, grow: Callable[..., Any], world_size: int
) -> None:
    url, thread = grow(pause_s=0.03)
    feeds = [feed_of(following(counted, url), rank=rank, world_size=world_size) for rank in range(world_size)]
    done = feed_of(counted.open())
    readers = [feed.iterate() for feed in feeds]
    # Two epochs: the second is shuffled, over a store that is then whole.
    for number in range(2 * done.batches_per_epoch):
        shares = [next(reader) for reader in readers]
        rows = np.concatenate([share.rows for share in shares])
        epoch, batch = divmod(number, done.batches_per_epoch)
        assert np.array_equal(np.sort(rows), np.sort(done.epoch(epoch).batch(batch)))
        for share in shares:
            np.testing.assert_array_equal(
                share.activations["mlp_out"].view(dtype=torch.uint16).numpy(),
                counted.words["mlp_out"][share.rows],
            )
    thread.join()
    for reader in readers:
        reader.close()


def test_the_first_epoch_goes_through_the_units_and_later_ones_do_not(counted: Any, store: Store) -> None:
    feed = feed_of(store, window_chunks=6)  # 6 chunks of 16 rows: a unit of 96
    first = [feed.epoch(0).window(index).rows // 96 for index in range(feed.epoch(0).num_windows)]
    units = [sorted(set(window.tolist())) for window in first]
    assert units == sorted(units)
    assert all(len(window) <= 2 for window in units)
    later = [feed.epoch(1).window(index).rows // 96 for index in range(feed.epoch(1).num_windows)]
    assert max(len(set(window.tolist())) for window in later) > 3
    # What every mode agrees on: rows, each once.
    everything = np.concatenate([feed.epoch(0).window(index).rows for index in range(feed.epoch(0).num_windows)])
    assert np.array_equal(np.sort(everything), expected_rows(counted))


def test_a_sequential_order_is_that_of_a_stored_feed(store: Store) -> None:
    stored = feed_of(store, mode="sequential", first_in_order=False)
    live = feed_of(store, mode="sequential")
    assert stored.identity == live.identity
    assert stored.identity != feed_of(store).identity
    for epoch in range(2):
        assert np.array_equal(stored.epoch(epoch).batch(3), live.epoch(epoch).batch(3))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_rows=st.integers(20, 400),
    window_chunks=st.integers(1, 70),
    attempts=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 12), st.integers(0, 3)), max_size=3),
    last_world_size=st.integers(1, 3),
)
def test_exactly_once_across_kills_and_worlds(
    counted: Any,
    batch_rows: int,
    window_chunks: int,
    attempts: list[tuple[int, int, int]],
    last_world_size: int,
) -> None:
    """Attempts of some ranks that read some batches, lose the last few, and go on as another number of ranks."""
    store = following(counted, counted.url)
    total = feed_of(store, batch_rows=batch_rows, window_chunks=window_chunks).batches_per_epoch
    batches: list[np.ndarray[Any, Any]] = []
    state, states = FeedState(), [FeedState()]
    for world_size, num_batches, num_lost in [*attempts, (last_world_size, total, 0)]:
        count = min(num_batches, total - len(batches))
        feeds = [
            feed_of(store, batch_rows=batch_rows, window_chunks=window_chunks, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        readers = [feed.iterate(state) for feed in feeds] if count else []
        for _ in range(count):
            shares = [next(reader) for reader in readers]
            batches.append(np.concatenate([share.rows for share in shares]))
            states.append(shares[0].state_after)
        for reader in readers:
            reader.close()
        if len(batches) < total:
            lost = min(num_lost, count)
            del batches[len(batches) - lost :]
            del states[len(states) - lost :]
            state = states[-1]
    assert np.array_equal(np.sort(np.concatenate(batches)), expected_rows(counted))
    order = feed_of(store, batch_rows=batch_rows, window_chunks=window_chunks).epoch(0)
    for number, rows in enumerate(batches):
        assert np.array_equal(np.sort(rows), np.sort(order.batch(number)))


def test_statistics_are_those_of_the_first_units(
    counted: Any, grow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving, "STATISTICS_ROWS", 150)  # two units of 96
    url, thread = grow(seed=1, pause_s=0.02)
    store = following(counted, url)
    assert store.statistics["resid"].count == 192
    norms = np.linalg.norm(counted.open().read_values("resid", 0, 192).astype(np.float64), axis=1)
    factor = scales(store, ["resid"], "mean_norm")["resid"]
    assert factor == pytest.approx(np.sqrt(8) / norms.mean(), rel=1e-6)
    assert store.hook_points == {"resid": 8, "mlp_out": 4}
    thread.join()


def test_a_failed_collection_ends_the_reading(counted: Any, grow: Callable[..., Any]) -> None:
    url, thread = grow()
    thread.join()
    failed = threading.Event()

    def require_alive() -> None:
        if failed.is_set():
            raise JobError("the collection has failed")

    batches = feed_of(following(counted, url, require_alive=require_alive), window_chunks=1).iterate()
    next(batches)
    failed.set()
    with pytest.raises(JobError, match="has failed"):
        for _ in islice(batches, 100_000):
            pass


def test_a_store_that_nobody_writes_is_given_up(counted: Any, tmp_path: Path) -> None:
    with pytest.raises(IncompleteError, match="no job has been writing"):
        next(feed_of(following(counted, str(tmp_path / "nothing"), patience_s=0.3)).iterate())


def test_a_store_that_somebody_holds_is_waited_for(counted: Any, grow: Callable[..., Any], tmp_path: Path) -> None:
    with held(Objects(str(tmp_path / "growing")), "collect"):
        url, thread = grow(pause_s=0.2)
        assert len(next(feed_of(following(counted, url, patience_s=0.3)).iterate()).rows) == 50
        thread.join()


def test_closing_does_not_wait_for_rows_that_never_come(counted: Any, tmp_path: Path) -> None:
    done = counted.open()
    url, passed = str(tmp_path / "begun"), next(iter(done.passes.values()))
    writer = StoreWriter.open(url, done.record, passed, num_rows=done.num_rows)
    for unit in range(2):
        start, stop = writer.unit_rows(unit)
        arrays = {hook: words[start:stop] for hook, words in counted.words.items()}
        writer.write_unit(unit, arrays, counted.tokens.slice(start, stop), worker="test", attempt=0, seconds={})
    store = following(counted, url, require_alive=lambda: None)
    # Statistics of units that are there: all would be waited for.
    store.__dict__["statistics"] = done.statistics
    batches = feed_of(store, window_chunks=6).iterate()
    assert len(list(islice(batches, 1))) == 1
    closing = threading.Thread(target=batches.close, daemon=True)
    closing.start()
    closing.join(timeout=20)
    assert not closing.is_alive()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feed": "live", "num_epochs": 2}, "keeps no row"),
        ({"feed": "follow", "rows": {"max_norm_multiple": 3}}, "norms of all rows"),
        ({"feed": "tee", "store": {"a": "x", "b": "y"}}, "reads one store"),
    ],
)
def test_what_a_feed_cannot_do_is_refused(fields: dict[str, Any], message: str) -> None:
    facts = {"kind": "train", "store": "s", "output": "o"}
    facts |= {"dictionaries": [{"name": "d", "sources": ["h"], "num_latents": 64}]}
    with pytest.raises(ValueError, match=message):
        JOB_ADAPTER.validate_python(facts | fields)
