"""CRC-32C (Castagnoli) as the store writes it: 8 hexadecimal digits in JSON, 4 little-endian bytes in shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import google_crc32c
import numpy as np

Buffer = bytes | bytearray | memoryview | np.ndarray


def crc32c(data: Buffer) -> int:
    """The checksum of any contiguous buffer, without copying it."""
    # The C extension takes buffers that cannot be resized; a numpy view makes one of anything.
    view = data.view(np.uint8) if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)
    return int(google_crc32c.value(view))


def crc32c_hex(data: Buffer) -> str:
    """As JSON has it."""
    return f"{crc32c(data):08x}"


def crc32c_of_pieces(pieces: Iterable[Buffer]) -> str:
    """As JSON has it, of the pieces one after the other."""
    checksum = 0
    for piece in pieces:
        view = piece.view(np.uint8) if isinstance(piece, np.ndarray) else np.frombuffer(piece, dtype=np.uint8)
        checksum = google_crc32c.extend(checksum, view)
    return f"{checksum:08x}"


def crc32c_of_chunks(checksums: Sequence[str]) -> str:
    """The checksum of a shard: that of its chunks' checksums, 4 little-endian bytes each.

    Not that of its bytes: data followed by its own CRC leaves the register in one fixed state whatever the data is, so
    that all shards of one geometry would have the same CRC.
    """
    return crc32c_hex(b"".join(int(one, 16).to_bytes(4, "little") for one in checksums))
