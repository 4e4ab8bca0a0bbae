"""Where an object's bytes come from: a memory map of a local file, or ranged reads of a remote object."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.store.checksums import Buffer, crc32c_of_pieces
from pipeline.store.objects import Objects
from schemas.errors import CorruptionError, MissingError
from schemas.store import ObjectReceipt

Bytes = npt.NDArray[np.uint8]

_PIECE_BYTES = 2**25


@dataclass(frozen=True)
class Source:
    """One object, read in pieces."""

    key: str
    """What messages call it."""
    size_bytes: int
    read: Callable[[int, int], Bytes]
    """``read(start, stop)`` -> [stop - start]; fewer where the object has been cut since. Raises CorruptionError where
    it has gone."""
    whole: Bytes | None = None
    """The object as memory, where there is such a thing."""

    @classmethod
    def over(cls, data: Buffer, key: str) -> Source:
        """A whole object in memory, which must stay unchanged."""
        whole = data.view(np.uint8) if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)
        return cls(key, len(whole), lambda start, stop: whole[start:stop], whole)

    def read_exactly(self, start: int, stop: int, what: str) -> Bytes:
        """Bytes [start, stop) of the object; raises CorruptionError if it has not as many."""
        if start < 0 or stop > self.size_bytes:
            raise CorruptionError(f"{self.key}: {what}: expected bytes [{start}, {stop}), got {self.size_bytes} in all")
        data = self.read(start, stop)
        if len(data) != stop - start:
            raise CorruptionError(f"{self.key}: bytes of {what}: expected {stop - start}, got {len(data)}")
        return data

    def crc32c(self) -> str:
        """The checksum of the whole object, read in pieces."""
        starts = range(0, self.size_bytes, _PIECE_BYTES)
        spans = ((start, min(start + _PIECE_BYTES, self.size_bytes)) for start in starts)
        return crc32c_of_pieces(self.read_exactly(start, stop, "the object") for start, stop in spans)


def open_source(objects: Objects, receipt: ObjectReceipt, *, is_mapped: bool = True) -> Source:
    """The object that the receipt names, its length compared; ``is_mapped``: as memory, if it is a file.

    Raises:
        CorruptionError: the object is not there or of another length.
    """
    where = f"{objects.url}/{receipt.key}"
    try:
        size_bytes = objects.size(receipt.key)
    except MissingError as exc:
        raise CorruptionError(f"{where}: expected {receipt.size_bytes} bytes, got no object") from exc
    if size_bytes != receipt.size_bytes:
        raise CorruptionError(f"{where}: expected {receipt.size_bytes} bytes, got {size_bytes}")
    path = objects.local_path(receipt.key)
    if path is not None and is_mapped:
        whole = _mapped(path)
        return Source(where, size_bytes, lambda start, stop: whole[start:stop], whole)

    def read(start: int, stop: int) -> Bytes:
        out = np.empty(stop - start, dtype=np.uint8)
        try:
            return out[: objects.read_into(receipt.key, start, out.data)]
        except MissingError as exc:
            raise CorruptionError(f"{where}: expected {receipt.size_bytes} bytes, got no object") from exc

    return Source(where, size_bytes, read)


def _mapped(path: Path) -> Bytes:
    """The file as read-only memory; the map lives as long as any view of it."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
