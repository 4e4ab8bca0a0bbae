"""``headworks.bf16`` for zarr-python, found through the entry point group ``zarr.codecs`` once Headworks is installed.

An array-to-bytes codec of uint16 arrays, in the place of ``bytes``: the last axis is the channels, all others are rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer

from pipeline.store import bf16_codec

NAME = "headworks.bf16"


@dataclass(frozen=True)
class Bf16Codec(ArrayBytesCodec):
    """See ``bf16_codec``. Decoding raises CorruptionError for bytes that are no such chunk."""

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
        """Raises ValueError for any data type but uint16."""
        if dtype.to_native_dtype() != np.dtype(np.uint16):
            raise ValueError(f"the codec {NAME} encodes bfloat16 words as uint16, got the data type {dtype}")

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("the size depends on the words")

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        rows, width = _table(chunk_spec.shape)
        payload = bf16_codec.encode(chunk_array.as_numpy_array().reshape(rows, width))
        return chunk_spec.prototype.buffer.from_array_like(payload)

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        words: Any = bf16_codec.decode(chunk_bytes.as_numpy_array().view(np.uint8), *_table(chunk_spec.shape))
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(words.reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        return self._encode_sync(chunk_array, chunk_spec)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return self._decode_sync(chunk_bytes, chunk_spec)


def _table(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, channels) of a chunk; one value for a chunk without axes."""
    return math.prod(shape[:-1]), shape[-1] if shape else 1
