"""Batches of a store as numpy arrays or Arrow batches, without torch: in the order of the store, or shuffled."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.order.batches import START, BatchReader, FeedState
from pipeline.order.keys import Split
from pipeline.order.placing import aligned_empty
from pipeline.order.window import Buffers, row_dtype
from pipeline.store.rows import TokenRows
from pipeline.store.words import Words, stored_dtype, to_float32
from schemas.errors import SpecError
from schemas.fields import LOSSY
from schemas.train import RowFilter, RowOrder

if TYPE_CHECKING:
    from pipeline.store.joined import AnyStore

ALL_ROWS = RowFilter(exclude_specials=False, exclude_positions=[])


@dataclass(frozen=True)
class ArrayBatch:
    """Rows of some hook points, row-aligned. Everything belongs to the consumer."""

    rows: npt.NDArray[np.int64]
    """Row ids, [b]."""
    activations: dict[str, npt.NDArray[Any]]
    """hook point -> [b, D], float32 values or stored words."""
    state_after: FeedState | None
    """Where to start to read the batch after this one; None of batches in the order of the store."""


def iter_batches(
    store: AnyStore,
    hook_points: Sequence[str] | None = None,
    *,
    batch_rows: int = 4096,
    start: int = 0,
    stop: int | None = None,
    as_words: bool = False,
) -> Generator[ArrayBatch, None, None]:
    """Rows [start, stop) in order, the last batch possibly short; the next batch is read while one is in use."""
    hooks = _hooks(store, hook_points)
    read = store.read_rows if as_words else store.read_values

    def batch(first: int, last: int) -> ArrayBatch:
        rows = np.arange(first, last)
        # Owned: a view of a mapped file would be read-only, and read from the disk when it is first looked at.
        owned = {hook: np.require(read(hook, first, last), requirements=["C", "O", "W"]) for hook in hooks}
        return ArrayBatch(rows, owned, None)

    return _ahead(_spans(store, batch_rows, start, stop), batch)


def iter_shuffled(
    store: AnyStore,
    hook_points: Sequence[str] | None = None,
    *,
    order: RowOrder,
    rows: RowFilter = ALL_ROWS,
    split: Split = "all",
    batch_rows: int = 4096,
    epochs: int = 1,
    state: FeedState = START,
    as_words: bool = False,
) -> Generator[ArrayBatch, None, None]:
    """The batches of ``RowFeed``, of epochs below ``epochs``, from ``state`` on."""
    reader = BatchReader(store, _hooks(store, hook_points), rows=rows, order=order, batch_rows=batch_rows, split=split)
    if as_words and store.dtype in LOSSY:
        raise SpecError(f"{store.url}: words of {store.dtype} mean nothing without their scales: read values")
    first, second, joined = (_allocate(store, reader.hook_points, count) for count in reader.buffer_rows)

    def copied(words: Words) -> npt.NDArray[Any]:
        return words.copy() if as_words or store.dtype in LOSSY else np.array(to_float32(words, store.dtype))

    def batches() -> Generator[ArrayBatch, None, None]:
        buffers = (first, second, joined)
        with closing(reader.read(state, buffers)) as found:
            for one in found:
                if one.epoch >= epochs:
                    return
                activations = {hook: copied(words[one.part]) for hook, words in buffers[one.buffer].items()}
                yield ArrayBatch(one.rows, activations, one.state_after)
                if one.state_after.epoch >= epochs:
                    return

    return batches()


def record_batches(
    store: AnyStore,
    hook_points: Sequence[str] | None = None,
    *,
    batch_rows: int = 4096,
    start: int = 0,
    stop: int | None = None,
    as_words: bool = False,
) -> Any:
    """``pyarrow.RecordBatchReader`` over rows [start, stop): the columns of the token rows, then one fixed-shape tensor
    column for each hook point, named as it. Words of bfloat16 are uint16; the field metadata has ``logical_dtype``."""
    hooks = _hooks(store, hook_points)
    kind = pa.from_numpy_dtype(stored_dtype(store.dtype) if as_words else np.dtype(np.float32))
    meaning = {"logical_dtype": store.dtype} if as_words else None
    tensors = [
        pa.field(hook, pa.fixed_shape_tensor(kind, [store.hook_points[hook]]), nullable=False, metadata=meaning)
        for hook in hooks
    ]
    columns = _token_columns(store.tokens(0, 0) if not store.num_rows else store.tokens(0, 1))
    names = [pa.field(name, pa.from_numpy_dtype(array.dtype), nullable=False) for name, array in columns.items()]
    schema = pa.schema([*names, *tensors])
    read = store.read_rows if as_words else store.read_values

    def batch(first: int, last: int) -> Any:
        arrays = [pa.array(array) for array in _token_columns(store.tokens(first, last)).values()]
        for hook, field in zip(hooks, tensors, strict=True):
            flat = pa.array(np.ascontiguousarray(read(hook, first, last)).reshape(-1))
            stored = pa.FixedSizeListArray.from_arrays(flat, store.hook_points[hook])
            arrays.append(pa.ExtensionArray.from_storage(field.type, stored))
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, _ahead(_spans(store, batch_rows, start, stop), batch))


def _hooks(store: AnyStore, hook_points: Sequence[str] | None) -> list[str]:
    hooks = list(store.hook_points) if hook_points is None else list(dict.fromkeys(hook_points))
    for hook in hooks:
        store.read_rows(hook, 0, 0)  # says now, not in the first batch, that there is no such hook point
    return hooks


def _spans(store: AnyStore, batch_rows: int, start: int, stop: int | None) -> Iterator[tuple[int, int]]:
    stop = store.num_rows if stop is None else stop
    if batch_rows < 1 or not 0 <= start <= stop <= store.num_rows:
        raise SpecError(
            f"batches of {batch_rows} of rows [{start}, {stop}): expected at least 1 row a batch, and rows within the "
            f"{store.num_rows} of {store.url}"
        )
    return ((first, min(first + batch_rows, stop)) for first in range(start, stop, batch_rows))


def _token_columns(tokens: TokenRows) -> dict[str, npt.NDArray[Any]]:
    names = ["row", "token_id", "document_id", "position", "held_out"]
    if tokens.source_row is not None:
        names.append("source_row")
    return {name: getattr(tokens, name) for name in names}


def _allocate(store: AnyStore, hooks: list[str], num_rows: int) -> Buffers:
    return {hook: aligned_empty(num_rows, store.hook_points[hook], row_dtype(store)) for hook in hooks}


def _ahead(spans: Iterator[tuple[int, int]], read: Callable[[int, int], Any]) -> Generator[Any, None, None]:
    """``read`` of each span, the next one under way while one is in use. Ends its thread when it is closed."""
    with ThreadPoolExecutor(1, thread_name_prefix="headworks-batches") as pool:
        pending: Future[Any] | None = None
        for span in spans:
            following = pool.submit(read, *span)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
