"""Where a shard's bytes come from: a memory map of a local file, or ranged reads of a remote object."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from pipeline.store.objects import Objects
from pipeline.store.shard import Bytes, Geometry, ShardReader
from schemas.errors import CorruptionError, MissingError
from schemas.store import ObjectReceipt


def open_shard(
    objects: Objects, receipt: ObjectReceipt, geometry: Geometry, num_rows: int, verified: set[int]
) -> ShardReader:
    """A reader of the object that the receipt names, its length compared.

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
    whole = _mapped(path) if path is not None else None

    def read(start: int, stop: int) -> Bytes:
        if whole is not None:
            return whole[start:stop]
        try:
            return np.frombuffer(objects.read_range(receipt.key, start, stop), dtype=np.uint8)
        except MissingError as exc:
            raise CorruptionError(f"{where}: expected {receipt.size_bytes} bytes, got no object") from exc

    return ShardReader(
        read, size_bytes, geometry, num_rows,
        key=where, chunk_crcs=receipt.chunk_crc32c, verified=verified, whole=whole,
    )  # fmt: skip


def _mapped(path: Path) -> Bytes:
    """The file as read-only memory; the map lives as long as any view of it."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
