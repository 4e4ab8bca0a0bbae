"""Streams that can only be read forwards, entered in the middle again and again.

A compressed file or a streamed dataset has no seek: part k costs the reading of parts 0..k-1. One worker reads its
parts in rising order, so the stream that its last part left open is kept, one per thread, and the next part goes on
from there: a worker reads each stream once instead of once per part.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Open(Generic[T]):
    key: str
    items: Iterator[tuple[int, T]]
    ahead: tuple[int, T] | None
    passed: int = 0
    """Items before this place are gone."""


_left_open = threading.local()


def read_range(
    key: str, start: int, stop: int, open_stream: Callable[[], Iterator[tuple[int, T]]]
) -> Iterator[tuple[int, T]]:
    """Items whose place lies in [start, stop), from a stream of ``(place, item)`` with rising places.

    ``key`` names the stream's content; a stream left open under the same key is used if it has not passed ``start``.
    """
    stream = _take(key, start) or _open(key, open_stream)
    while stream.ahead is not None and stream.ahead[0] < start:
        stream.ahead = next(stream.items, None)
    while stream.ahead is not None and stream.ahead[0] < stop:
        yield stream.ahead
        stream.ahead = next(stream.items, None)
    stream.passed = stop
    close_stream()
    _left_open.stream = stream


def close_stream() -> None:
    """Close the stream that this thread's last range left open, if any."""
    stream = _left_open.__dict__.pop("stream", None)
    if stream is not None:
        with suppress(AttributeError):  # iterators that are no generators have nothing to close
            stream.items.close()


def _open(key: str, open_stream: Callable[[], Iterator[tuple[int, T]]]) -> _Open[T]:
    items = open_stream()
    return _Open(key, items, next(items, None))


def _take(key: str, start: int) -> _Open[T] | None:
    """The stream left open, out of the shelf, if it can still reach ``start``."""
    stream: _Open[T] | None = _left_open.__dict__.get("stream")
    if stream is None or stream.key != key or stream.passed > start:
        return None
    del _left_open.stream
    return stream
