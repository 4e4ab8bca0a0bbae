"""A store whose rows are still being made, as far as a feed and a training need one.

Which rows there will be, and their tokens, is known from the token table before the first of them is computed. So the
order of rows does not depend on when they come: whoever needs a row waits for it. Where rows come from, a growing
ledger or the memory of forward processes, is the business of ``Blocks``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from threading import Event, Lock
from typing import Protocol

from pipeline.store import layout
from pipeline.store.joined import AnyStore
from pipeline.store.objects import Objects
from pipeline.store.rows import TokenRows
from pipeline.store.words import Floats, Words
from schemas.fields import Dtype
from schemas.store import HookStatistics, StoreRecord

STATISTICS_ROWS = 2**14
"""The statistics that training starts from are those of the units that hold the first so many rows."""


class TokenSource(Protocol):
    """Token rows by their index: a token table."""

    def rows(self, start: int, stop: int) -> TokenRows:
        """Rows [start, stop)."""


class Blocks(Protocol):
    """The rows of units, a block each, as they come to be. Safe to use from several threads."""

    def wait(self, unit: int, stop: Event) -> bool:
        """Return True once the unit can be read, False once ``stop`` is set.

        Raises:
            JobError, IncompleteError: nobody is making it any more.
        """

    def read_rows(self, hook: str, start: int, stop: int) -> Words:
        """Words [stop - start, D] of rows of one unit that can be read."""

    def read_values(self, hook: str, start: int, stop: int) -> Floats:
        """The same as float32 values."""

    def statistics(self, num_units: int) -> dict[str, HookStatistics]:
        """hook point -> statistics of the first units; waits for them."""

    def done_before(self, unit: int) -> None:
        """This reader wants no unit before ``unit`` any more in this epoch."""


class ArrivingStore:
    """A store of one collect job, from its plan, its token table and the blocks of its units."""

    def __init__(
        self,
        url: str,
        record: StoreRecord,
        tokens: TokenSource,
        blocks: Blocks,
        hook_points: Sequence[str],
        num_rows: int,
    ) -> None:
        """``hook_points``: those in use. ``num_rows``: as planned."""
        self.url = url
        self.objects = Objects(url)
        """Where rows come from, or would: decides how many are asked for at a time."""
        self.record = record
        self.num_rows = num_rows
        self._tokens = tokens
        self._blocks = blocks
        self._hooks = list(hook_points)
        self._tokens_lock = Lock()

    @property
    def fingerprint(self) -> str:
        """The identity of the store that is being made."""
        return self.record.fingerprint

    @property
    def table_fingerprint(self) -> str:
        """Its token table."""
        return self.record.table_fingerprint

    @property
    def dtype(self) -> Dtype:
        """Logical type of the words."""
        return self.record.dtype

    @cached_property
    def statistics(self) -> dict[str, HookStatistics]:
        """hook point -> statistics of the units that hold the first ``STATISTICS_ROWS`` rows; waits for them."""
        found = self._blocks.statistics(statistics_units(self.num_rows, self.record.shard_rows))
        return {hook: found[hook] for hook in self._hooks if hook in found}

    @cached_property
    def hook_points(self) -> dict[str, int]:
        """hook point -> d_model; waits as ``statistics`` does."""
        return {hook: len(one.mean) for hook, one in self.statistics.items()}

    def tokens(self, start: int = 0, stop: int | None = None) -> TokenRows:
        """Token rows [start, stop); they are all there."""
        with self._tokens_lock:
            return self._tokens.rows(start, self.num_rows if stop is None else stop)

    def wait(self, row: int, stop: Event) -> bool:
        """Wait until the unit of a row can be read; False once ``stop`` is set. Raises: as ``Blocks.wait``."""
        return self._blocks.wait(row // self.record.shard_rows, stop)

    def read_rows(self, hook: str, start: int, stop: int) -> Words:
        """Words [stop - start, D] of rows of one unit, which can be read."""
        return self._blocks.read_rows(hook, start, stop)

    def read_values(self, hook: str, start: int, stop: int) -> Floats:
        """The same as float32 values."""
        return self._blocks.read_values(hook, start, stop)

    def done_before(self, row: int) -> None:
        """No row before this one is wanted any more in the first epoch."""
        self._blocks.done_before(row // self.record.shard_rows)


FeedStore = AnyStore | ArrivingStore
"""What a feed reads from."""


def statistics_units(num_rows: int, shard_rows: int) -> int:
    """How many units hold the first ``STATISTICS_ROWS`` rows."""
    return layout.num_units(min(num_rows, STATISTICS_ROWS), shard_rows)
