"""Several requests to a remote storage at a time, and a bound on the memory that they take together.

At most ``REQUESTS_AT_ONCE`` requests of this process are under way, from however many threads; a read is cut into
requests of at most ``PART_BYTES``. So reads hold, beside what they return, at most 16 x 8 MiB = 128 MiB, and writes
``UPLOADS_AT_ONCE`` parts of 16 MiB, 128 MiB too (more only above 156 GiB an object, where S3 needs larger parts).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import islice
from threading import BoundedSemaphore
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class MapBlocks(Protocol):
    """``map`` over one list, or the same on several threads: results in order, whoever computes them."""

    def __call__(self, function: Callable[[Item], Result], blocks: Iterable[Item], /) -> Iterable[Result]: ...


PART_BYTES = 8 * 2**20
UPLOAD_BYTES = 16 * 2**20
REQUESTS_AT_ONCE = 16
UPLOADS_AT_ONCE = 8

_requests = BoundedSemaphore(REQUESTS_AT_ONCE)
_uploads = BoundedSemaphore(UPLOADS_AT_ONCE)


@cache
def _pool(is_outer: bool) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(REQUESTS_AT_ONCE, "headworks-reads" if is_outer else "headworks-storage")


def _forget() -> None:
    """A forked child has none of its parent's threads, and copies of its locks in whatever state they were."""
    global _requests, _uploads
    _requests, _uploads = BoundedSemaphore(REQUESTS_AT_ONCE), BoundedSemaphore(UPLOADS_AT_ONCE)
    _pool.cache_clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def request_slot() -> Iterator[None]:
    """Wait for one of the requests at once. Held while bytes move, not while a retry waits."""
    with _requests:
        yield


@contextmanager
def upload_slot() -> Iterator[None]:
    """Wait for one of the parts that are held as copies at once, from the first try to the last."""
    with _uploads:
        yield


def spans_of(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """[start, stop) in spans of at most ``size``, ascending."""
    return [(begin, min(begin + size, stop)) for begin in range(start, stop, size)]


def at_once(function: Callable[[Item], Result], items: Iterable[Item], *, is_outer: bool = False) -> Iterator[Result]:
    """``map`` on the process's own threads, in order, few results ahead. ``function`` must not call this itself, but
    with ``is_outer``, which has threads of its own: then it may call the other.

    After an error no further call begins, and those under way are waited for: nothing writes into a caller's buffer
    after the caller has gone on.
    """
    waiting = iter(items)
    pool = _pool(is_outer)
    under_way: list[Future[Result]] = [pool.submit(function, item) for item in islice(waiting, 2 * REQUESTS_AT_ONCE)]
    try:
        while under_way:
            yield under_way.pop(0).result()
            under_way += [pool.submit(function, item) for item in islice(waiting, 1)]
    finally:
        for future in under_way:
            future.cancel()
        for future in under_way:
            if not future.cancelled():
                future.exception()
