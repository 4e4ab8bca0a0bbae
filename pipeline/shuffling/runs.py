"""Rows between two passes: runs of sections, each a block of columns.

A run is one object, ``LEVEL/TASK.rows``: the sections one after the other; a section is the columns of its rows one
after the other, each little-endian and without gaps. What the sections are is in ``LEVEL/TASK.json``, which is written
last: the run exists when that does. Equal tasks write equal bytes, so a task that is done twice does no harm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store.checksums import crc32c_hex
from pipeline.store.documents import parse, sealed, to_bytes, unsealed
from pipeline.store.objects import Objects
from schemas.errors import CorruptionError, MissingError
from schemas.shuffle import RunReceipt

Ints = npt.NDArray[np.int64]
Block = Mapping[str, npt.NDArray[Any]]
"""Column name -> array whose first axis is the rows, [n] or [n, D]."""


@dataclass(frozen=True)
class Column:
    """One column of every block."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    """Of one row."""

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def empty(self, num_rows: int) -> npt.NDArray[Any]:
        """Uninitialised, of so many rows."""
        return np.empty((num_rows, *self.shape), dtype=self.dtype)


@dataclass(frozen=True)
class Runs:
    """The runs below one prefix of the scratch folder. Picklable."""

    objects: Objects
    columns: tuple[Column, ...]

    @cached_property
    def row_bytes(self) -> int:
        return sum(column.row_bytes for column in self.columns)

    def done(self, level: int) -> list[int]:
        """Tasks of a scatter pass whose runs exist, ascending, by one listing."""
        keys = self.objects.list(f"{level}/")
        return sorted(int(key.rpartition("/")[2].removesuffix(".json")) for key in keys if key.endswith(".json"))

    def write(
        self, level: int, task: int, block: Iterator[tuple[str, npt.NDArray[Any]]], places: Sequence[Ints]
    ) -> int:
        """Write a run; its bytes.

        ``block`` gives the columns in their order, one at a time, so that no more than one need be in memory;
        ``places``: for each section the rows of the block that are in it.
        """
        counts = [len(rows) for rows in places]
        starts = np.concatenate([[0], np.cumsum(counts)]) * self.row_bytes
        run = bytearray(int(starts[-1]))
        data = np.frombuffer(run, dtype=np.uint8)
        offset = 0
        for column, (name, values) in zip(self.columns, block, strict=True):
            assert column.name == name, (column.name, name)
            for start, rows, count in zip(starts[:-1].tolist(), places, counts, strict=True):
                at = start + offset * count
                taken = np.ascontiguousarray(values[rows], dtype=column.dtype)
                data[at : at + taken.nbytes] = taken.reshape(-1).view(np.uint8)
            offset += column.row_bytes
        edges = starts.tolist()
        receipt = RunReceipt(
            section_rows=counts,
            section_crc32c=[crc32c_hex(data[a:b]) for a, b in pairwise(edges)],
        )
        # Over whatever a killed attempt left: it would be the same bytes, or half of them.
        self.objects.write(_key(level, task, "rows"), run)
        self.objects.write(_key(level, task, "json"), to_bytes(sealed(receipt)))
        return len(run)

    def read(self, level: int, task: int, section: int) -> dict[str, npt.NDArray[Any]]:
        """The block of a section, checked.

        Raises:
            CorruptionError: it is not there, or altered.
        """
        receipt = self._receipt(level, task)
        num_rows = receipt.section_rows[section]
        start = sum(receipt.section_rows[:section]) * self.row_bytes
        key = _key(level, task, "rows")
        where = f"{self.objects.url}/{key}"
        try:
            data = self.objects.read_range(key, start, start + num_rows * self.row_bytes)
        except MissingError as exc:
            raise self._damaged(where, "a run of rows", "no object") from exc
        if (got := crc32c_hex(data)) != receipt.section_crc32c[section]:
            raise self._damaged(where, f"CRC-32C {receipt.section_crc32c[section]} of section {section}", got)
        block: dict[str, npt.NDArray[Any]] = {}
        offset = 0
        for column in self.columns:
            count = num_rows * int(np.prod(column.shape, dtype=np.int64))
            flat = np.frombuffer(data, dtype=column.dtype, count=count, offset=offset)
            block[column.name] = flat.reshape(num_rows, *column.shape)
            offset += flat.nbytes
        return block

    def delete(self, level: int | None = None) -> None:
        """Remove the runs of a scatter pass, or all that is here. Receipts first: a run without one does not exist."""
        keys = self.objects.list("" if level is None else f"{level}/")
        for key in sorted(keys, key=lambda key: (not key.endswith(".json"), key)):
            self.objects.delete(key)

    def _receipt(self, level: int, task: int) -> RunReceipt:
        key = _key(level, task, "json")
        where = f"{self.objects.url}/{key}"
        try:
            return unsealed(parse(self.objects.read(key), where), RunReceipt, where)
        except MissingError as exc:
            raise self._damaged(where, "the receipt of a run", "no object") from exc

    def _damaged(self, where: str, expected: str, got: str) -> CorruptionError:
        return CorruptionError(
            f"{where}: expected {expected}, got {got}; delete {self.objects.url} and run the shuffle again"
        )


def _key(level: int, task: int, kind: str) -> str:
    return f"{level}/{task:08d}.{kind}"
