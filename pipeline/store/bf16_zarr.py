"""``headworks.bf16`` for zarr-python, of uint16 arrays: the last axis is the channels, all others are rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store import bf16_codec
from pipeline.store.zarr_codec import PlainCodec

NAME = "headworks.bf16"


@dataclass(frozen=True)
class Bf16Codec(PlainCodec):
    """See ``bf16_codec``. Decoding raises CorruptionError for bytes that are no such chunk."""

    name = NAME

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Raises ValueError for any data type but uint16."""
        if dtype.to_native_dtype() != np.dtype(np.uint16):
            raise ValueError(f"the codec {NAME} encodes bfloat16 words as uint16, got the data type {dtype}")

    def encode_array(self, array: npt.NDArray[Any]) -> Any:
        """See ``PlainCodec``."""
        return bf16_codec.encode(array.reshape(_table(array.shape)))

    def decode_array(self, payload: npt.NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """See ``PlainCodec``."""
        return bf16_codec.decode(payload, *_table(shape))


def _table(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, channels) of a chunk; one value for a chunk without axes."""
    return math.prod(shape[:-1]), shape[-1] if shape else 1
