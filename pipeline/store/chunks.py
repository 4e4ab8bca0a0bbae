"""Rows out of chunks: what the readers of every layout have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.store.parallel import PART_BYTES, at_once
from pipeline.store.words import Words

Ints = npt.NDArray[np.int64]


class RowReader(Protocol):
    """Rows of one array that one object of a unit holds, T of D words each.

    Every method raises CorruptionError, naming the object, where the bytes are not what was committed.
    """

    def rows(self, start: int, stop: int) -> Words:
        """Words [stop - start, D]: a view of the source where it is mapped, not compressed, and one chunk has them."""
        ...

    def gather(self, rows: Ints, out: Words, places: Ints) -> None:
        """``out[places] = rows`` of this object, in any order; each chunk is read once."""
        ...

    def check_all(self) -> None:
        """Check every byte of the object."""
        ...


class Chunked(Protocol):
    """What ``read_rows`` and ``gather_rows`` need to know."""

    key: str
    num_rows: int
    chunk_rows: int
    width: int
    dtype: np.dtype[Any]

    @property
    def is_mapped(self) -> bool:
        """The object is memory: reading it takes no requests."""
        ...

    def chunks(self, first: int, stop: int) -> list[Words]:
        """Chunks [first, stop), checked, [chunk_rows, D] each; the last one of a unit may be shorter or end in
        padding."""
        ...

    def table(self) -> Words | None:
        """[m, chunk_rows, D] over the first m chunks where they lie evenly in memory, unchecked."""
        ...

    def check(self, chunks: Ints) -> None:
        """Check those of the chunks that no one has checked yet."""
        ...


def read_rows(source: Chunked, start: int, stop: int) -> Words:
    """``RowReader.rows``."""
    if not 0 <= start <= stop <= source.num_rows:
        raise ValueError(f"{source.key}: rows [{start}, {stop}) are not within its {source.num_rows}")
    if start == stop:
        return np.empty((0, source.width), dtype=source.dtype)
    size = source.chunk_rows
    first, last = start // size, (stop - 1) // size
    chunks = source.chunks(first, last + 1)
    if len(chunks) == 1:
        return chunks[0][start - first * size : stop - first * size]
    out = np.empty((stop - start, source.width), dtype=source.dtype)
    for place, words in enumerate(chunks, start=first):
        begin, end = max(start, place * size), min(stop, (place + 1) * size)
        out[begin - start : end - start] = words[begin - place * size : end - place * size]
    return out


def gather_rows(source: Chunked, rows: Ints, out: Words, places: Ints) -> None:
    """``RowReader.gather``."""
    size = source.chunk_rows
    chunk_of = rows // size
    table = source.table()
    if table is not None:
        source.check(np.unique(chunk_of))
        behind = np.flatnonzero(chunk_of >= len(table))
        if not len(behind):
            out[places] = table[chunk_of, rows % size]
            return
        before = np.flatnonzero(chunk_of < len(table))
        out[places[before]] = table[chunk_of[before], rows[before] % size]
        rows, places, chunk_of = rows[behind], places[behind], chunk_of[behind]

    def fill(run: tuple[int, int]) -> None:
        first, stop = run
        for chunk, words in enumerate(source.chunks(first, stop), start=first):
            mine = np.flatnonzero(chunk_of == chunk)
            out[places[mine]] = words[rows[mine] - chunk * size]

    runs = [*_runs(np.unique(chunk_of), limit=_chunks_at_once(source))]
    # Each run fills places of its own. A request waits longer than its bytes take: as many as may are under way.
    is_apart = len(runs) > 1 and not source.is_mapped
    for _ in at_once(fill, runs, is_outer=True) if is_apart else map(fill, runs):
        pass


def _chunks_at_once(source: Chunked) -> int:
    """Neighbouring chunks worth one read: about 32 MiB, of which several are held where they are requests."""
    most = 2**25 if source.is_mapped else PART_BYTES
    return max(1, most // (source.chunk_rows * source.width * source.dtype.itemsize))


def _runs(chunks: Ints, *, limit: int) -> Iterator[tuple[int, int]]:
    """Ascending distinct chunks as [first, stop) runs of neighbours, none longer than ``limit``."""
    first = stop = -1
    for chunk in chunks.tolist():
        if chunk != stop or stop - first >= limit:
            if stop > first:
                yield first, stop
            first = chunk
        stop = chunk + 1
    if stop > first:
        yield first, stop
