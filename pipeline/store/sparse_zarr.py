"""``headworks.sparse`` for zarr-python: all elements of a chunk in C order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store import sparse_codec
from pipeline.store.zarr_codec import PlainCodec

NAME = "headworks.sparse"


@dataclass(frozen=True)
class SparseCodec(PlainCodec):
    """See ``sparse_codec``. Decoding raises CorruptionError for bytes that are no such chunk."""

    name = NAME

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Raises ValueError for a data type whose elements have not 1, 2 or 4 bytes."""
        if dtype.to_native_dtype().itemsize not in (1, 2, 4):
            raise ValueError(f"the codec {NAME} encodes elements of 1, 2 or 4 bytes, got the data type {dtype}")

    def encode_array(self, array: npt.NDArray[Any]) -> Any:
        """See ``PlainCodec``."""
        return sparse_codec.encode(array.reshape(1, -1))

    def decode_array(self, payload: npt.NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """See ``PlainCodec``."""
        return sparse_codec.decode(payload, 1, math.prod(shape), dtype)
