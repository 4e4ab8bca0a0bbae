"""The face that a store shows in a notebook: indexing, finding rows, their text, batches. All of it by ``Store``'s own
reading; what it takes is imported when it is first asked for, so that opening a store stays fast."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from pipeline.store.finding import DocumentRanges, context_rows, document_rows, token_rows
from pipeline.store.indexing import HookArray
from pipeline.store.page import line, page
from pipeline.store.rows import TokenRows
from pipeline.store.words import Floats
from schemas.errors import SpecError

if TYPE_CHECKING:
    from pipeline.order.arrays import ArrayBatch
    from pipeline.order.batches import FeedState
    from pipeline.order.keys import Split
    from pipeline.store.reader import Store
    from pipeline.tokens.origins import Decode, Origin
    from schemas.train import RowFilter, RowOrder


class StoreFace:
    """Base of ``Store`` alone."""

    def __getitem__(self, hook: str) -> HookArray:
        """The rows of one hook point, to be indexed as a numpy array [rows, D]. Raises HookPointError."""
        self._store.read_rows(hook, 0, 0)
        return HookArray(self._store, hook)

    def __iter__(self) -> Iterator[str]:
        """The hook points."""
        return iter(self._store.hook_points)

    def __contains__(self, hook: object) -> bool:
        return hook in self._store.hook_points

    def __len__(self) -> int:
        """Rows of every hook point."""
        return self._store.num_rows

    def __bool__(self) -> bool:
        """A store without rows is a store."""
        return True

    def __repr__(self) -> str:
        return line(self._store)

    def _repr_html_(self) -> str:
        return page(self._store)

    def rows(self, hook: str, indices: npt.ArrayLike) -> Floats:
        """float32 [n, D] of rows by their ids, in any order. Raises: as ``read_rows``."""
        return self._store.gather_values(hook, np.asarray(indices, dtype=np.int64).reshape(-1))

    def context(self, document: int | None = None, *, row: int | None = None) -> TokenRows:
        """The rows of a document, wherever they are; or of the context, what the model saw at once, that holds a row.

        Raises:
            SpecError: no such document or row, or both or neither were asked for.
        """
        if (document is None) == (row is None):
            raise SpecError(f"ask for the rows of a document or for the context of a row; got {document=} and {row=}")
        if row is not None:
            return context_rows(self._store, row)
        return document_rows(self._store, self._documents, cast(int, document))

    def find_token(self, token_id: int, *, limit: int | None = None) -> npt.NDArray[np.int64]:
        """Rows that hold a token, ascending; the first ``limit``. Reads the store's tokens up to there."""
        return token_rows(self._store, token_id, limit=limit)

    def origin(self, row: int, *, around: int = 32, table: str | None = None, decode: Decode | None = None) -> Origin:
        """The text that a row is of; see ``pipeline.tokens.origins.origin_of``."""
        from pipeline.tokens.origins import origin_of

        return origin_of(self._store, row, around=around, table=table, decode=decode)

    def iter_batches(
        self,
        hook_points: Sequence[str] | None = None,
        *,
        batch_rows: int = 4096,
        start: int = 0,
        stop: int | None = None,
        as_words: bool = False,
    ) -> Generator[ArrayBatch, None, None]:
        """numpy batches in the order of the store; see ``pipeline.order.arrays``."""
        from pipeline.order.arrays import iter_batches

        return iter_batches(self._store, hook_points, batch_rows=batch_rows, start=start, stop=stop, as_words=as_words)

    def iter_shuffled(
        self,
        hook_points: Sequence[str] | None = None,
        *,
        order: RowOrder,
        rows: RowFilter | None = None,
        split: Split = "all",
        batch_rows: int = 4096,
        epochs: int = 1,
        state: FeedState | None = None,
        as_words: bool = False,
    ) -> Generator[ArrayBatch, None, None]:
        """numpy batches in the order of training: ``rows`` None leaves out none; ``state`` None is the beginning."""
        from pipeline.order.arrays import ALL_ROWS, iter_shuffled
        from pipeline.order.batches import START

        return iter_shuffled(
            self._store, hook_points, order=order, rows=rows or ALL_ROWS, split=split, batch_rows=batch_rows,
            epochs=epochs, state=state or START, as_words=as_words,
        )  # fmt: skip

    def record_batches(
        self,
        hook_points: Sequence[str] | None = None,
        *,
        batch_rows: int = 4096,
        start: int = 0,
        stop: int | None = None,
        as_words: bool = False,
    ) -> Any:
        """``pyarrow.RecordBatchReader`` in the order of the store, tokens included; see ``pipeline.order.arrays``."""
        from pipeline.order.arrays import record_batches

        return record_batches(
            self._store, hook_points, batch_rows=batch_rows, start=start, stop=stop, as_words=as_words
        )

    @cached_property
    def _documents(self) -> DocumentRanges:
        return DocumentRanges(self._store)

    @property
    def _store(self) -> Store:
        return cast("Store", self)
