"""The dataset in real loaders: the same batches for any number of processes, each row once over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.order.dataset import ActivationBatch, ActivationDataset
from pipeline.order.feed import FeedState, RowFeed
from pipeline.store.reader import Store
from schemas.errors import MismatchError, SpecError
from schemas.train import RowFilter, RowOrder

ORDER = RowOrder(seed=3, window_chunks=10)


def dataset_of(store: Store, **options: Any) -> ActivationDataset:
    return ActivationDataset(store, ["resid", "mlp_out"], **{"batch_rows": 50, "order": ORDER, **options})


def expected(store: Store, epochs: int = 1, **options: Any) -> list[ActivationBatch]:
    """The batches of the feed."""
    rows = options.pop("rows", RowFilter())
    feed = RowFeed(store, ["resid", "mlp_out"], **{"rows": rows, "order": ORDER, "batch_rows": 50, **options})
    return [
        ActivationBatch(
            torch.from_numpy(one.rows),
            {hook: acts.clone() for hook, acts in one.activations.items()},
            {"epoch": one.state_after.epoch, "batch": one.state_after.batch},
        )
        for one in islice(feed.iterate(), epochs * feed.batches_per_epoch)
    ]


def require_same(got: list[ActivationBatch], wanted: list[ActivationBatch]) -> None:
    assert [batch.rows.tolist() for batch in got] == [batch.rows.tolist() for batch in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert all(torch.equal(one.activations[hook], acts) for hook, acts in other.activations.items())
        assert (one.state["epoch"], one.state["batch"]) == (other.state["epoch"], other.state["batch"])


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_loader_gives_the_batches_of_the_feed(store: Store, num_workers: int) -> None:
    dataset = dataset_of(store, epochs=2)
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers)
    wanted = expected(store, epochs=2)
    assert len(loader) == len(dataset) == len(wanted)
    require_same([*loader], wanted)
    require_same([*loader], wanted)


def test_processes_that_are_spawned(store: Store) -> None:
    """The store is opened anew in each."""
    loader = DataLoader(dataset_of(store), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    require_same([*loader], expected(store))


def test_ranks_and_processes_share_every_row_once(counted: Any, store: Store) -> None:
    tokens = counted.tokens
    wanted = tokens.row[(tokens.position != 0) & (tokens.token_id != 3) & ~tokens.held_out]
    seen = []
    for rank in range(2):
        dataset = dataset_of(store, rank=rank, world_size=2)
        for batch in DataLoader(dataset, batch_size=None, num_workers=2):
            got = batch.activations["resid"].view(torch.uint16).numpy()
            np.testing.assert_array_equal(got, counted.words["resid"][batch.rows.numpy()])
            seen.append(batch.rows.numpy())
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), wanted)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 7, 18, 19])
def test_it_goes_on_behind_any_batch(store: Store, taken: int, num_workers: int) -> None:
    """Saved with one number of processes, resumed with another."""
    wanted = expected(store, epochs=2)
    first = dataset_of(store, epochs=2)
    batches = [*islice(first, taken)]
    state = first.state_dict()
    if batches:
        assert state == batches[-1].state
    again = dataset_of(store, epochs=2)
    again.load_state_dict(state)
    loader = DataLoader(again, batch_size=None, num_workers=num_workers)
    assert len(loader) == len(wanted) - taken
    require_same([*loader], wanted[taken:])


def test_the_end_is_a_state_too(store: Store) -> None:
    dataset = dataset_of(store)
    *_, last = dataset
    assert last.state["epoch"] == 1
    dataset.load_state_dict(last.state)
    assert [*dataset] == []
    longer = dataset_of(store, epochs=2)
    longer.load_state_dict(last.state)
    require_same([*longer], expected(store, epochs=2)[len(dataset_of(store)) :])


def test_a_state_of_other_rows_is_refused(store: Store) -> None:
    state = dataset_of(store).state_dict()
    for other in ({"batch_rows": 51}, {"split": "held_out"}, {"order": RowOrder(seed=4)}):
        with pytest.raises(MismatchError, match="saved state of the dataset"):
            dataset_of(store, **other).load_state_dict(state)
    dataset_of(store, rank=1, world_size=3).load_state_dict(state)


def test_kept_batches_stay_as_they_are(store: Store) -> None:
    require_same([*dataset_of(store)], expected(store))


def test_views_are_for_one_process(store: Store) -> None:
    dataset = dataset_of(store, copy=False)
    storages = {batch.activations["resid"].untyped_storage().data_ptr() for batch in dataset}
    assert len(storages) == 3
    with pytest.raises(SpecError, match="copy=False"):
        next(iter(DataLoader(dataset, batch_size=None, num_workers=1)))


def test_a_loader_process_does_not_say_where_training_is(store: Store) -> None:
    class Asking(ActivationDataset):
        def __iter__(self) -> Any:
            yield self.state_dict()

    with pytest.raises(SpecError, match="keep the batch's own"):
        next(iter(DataLoader(Asking(store, ["resid"], batch_rows=10), batch_size=None, num_workers=1)))


def test_the_rank_is_that_of_torch_distributed(store: Store, tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        dataset = dataset_of(store)
        assert (dataset.feed.rank, dataset.feed.world_size) == (0, 1)
        assert dataset_of(store, rank=1, world_size=2).feed.rank == 1
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(SpecError, match="rank and world_size together"):
        dataset_of(store, rank=1)


def test_another_filter_and_a_url(counted: Any) -> None:
    none = RowFilter(exclude_specials=False, exclude_positions=[])
    dataset = ActivationDataset(counted.url, ["resid"], batch_rows=400, rows=none, split="all")
    assert sorted(np.concatenate([batch.rows for batch in dataset])) == list(range(1003))
    assert dataset.feed.epoch(0).num_batches == len(dataset) == 3
    assert FeedState(**{name: dataset.state_dict()[name] for name in ("epoch", "batch")}) == FeedState(1, 0)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3"])
@pytest.mark.parametrize("layout", ["zarr", "arrow"])
def test_a_lossy_store_gives_values(write_store: Callable[..., Any], dtype: str, layout: str) -> None:
    store = write_store(dtype=dtype, layout=layout).open()
    for batch in dataset_of(store):
        for hook, acts in batch.activations.items():
            assert acts.dtype is torch.float32
            np.testing.assert_array_equal(acts.numpy(), store.gather_values(hook, batch.rows.numpy()))


@pytest.mark.parametrize("kind", [{"layout": "arrow"}, {"codec": "zstd"}, {"codec": "bf16"}, {"dtype": "float32"}])
def test_every_layout_and_codec_gives_the_same_rows(write_store: Callable[..., Any], kind: dict[str, str]) -> None:
    """Rows of eight float32 are long enough for the fast way of placing them."""
    store = write_store(**kind).open()
    for batch in dataset_of(store):
        for hook, acts in batch.activations.items():
            np.testing.assert_array_equal(acts.float().numpy(), store.gather_values(hook, batch.rows.numpy()))
