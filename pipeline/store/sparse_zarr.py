"""``headworks.sparse`` for zarr-python, found through the entry point group ``zarr.codecs`` as ``headworks.bf16`` is.

An array-to-bytes codec in the place of ``bytes``: all elements of a chunk in C order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer

from pipeline.store import sparse_codec

NAME = "headworks.sparse"


@dataclass(frozen=True)
class SparseCodec(ArrayBytesCodec):
    """See ``sparse_codec``. Decoding raises CorruptionError for bytes that are no such chunk."""

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Raises ValueError where there is a configuration: the codec has none."""
        if data.get("name") != NAME or data.get("configuration"):
            raise ValueError(f"expected the codec {NAME} without configuration, got {data}")
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {"name": NAME}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Raises ValueError for a data type whose elements have not 1, 2 or 4 bytes."""
        if dtype.to_native_dtype().itemsize not in (1, 2, 4):
            raise ValueError(f"the codec {NAME} encodes elements of 1, 2 or 4 bytes, got the data type {dtype}")

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("the size depends on the elements")

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        payload = sparse_codec.encode(chunk_array.as_numpy_array().reshape(1, -1))
        return chunk_spec.prototype.buffer.from_array_like(payload)

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        payload, dtype = chunk_bytes.as_numpy_array().view(np.uint8), chunk_spec.dtype.to_native_dtype()
        words: Any = sparse_codec.decode(payload, 1, math.prod(chunk_spec.shape), dtype)
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(words.reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        return self._encode_sync(chunk_array, chunk_spec)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return self._decode_sync(chunk_bytes, chunk_spec)
