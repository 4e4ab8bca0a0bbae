"""What zarr-python wants of an array-to-bytes codec, around a codec of ours: subclasses name it, and encode and decode.

Such a codec stands in the place of ``bytes``, has no configuration, and is found through the entry point group
``zarr.codecs`` once Headworks is installed.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer


class PlainCodec(ArrayBytesCodec):
    """Frozen dataclasses without fields are its subclasses."""

    name: ClassVar[str]
    """In the metadata of arrays."""
    is_fixed_size = False

    @abstractmethod
    def encode_array(self, array: npt.NDArray[Any]) -> Any:
        """The payload of a chunk, uint8 or bytes."""

    @abstractmethod
    def decode_array(self, payload: npt.NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """The chunk, of as many elements as ``shape`` says. Raises CorruptionError."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Raises ValueError where there is a configuration: the codec has none."""
        if data.get("name") != cls.name or data.get("configuration"):
            raise ValueError(f"expected the codec {cls.name} without configuration, got {data}")
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("the size depends on the elements")

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        return chunk_spec.prototype.buffer.from_array_like(self.encode_array(chunk_array.as_numpy_array()))

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        payload = chunk_bytes.as_numpy_array().view(np.uint8)
        words = self.decode_array(payload, chunk_spec.shape, chunk_spec.dtype.to_native_dtype())
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(words.reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        return self._encode_sync(chunk_array, chunk_spec)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return self._decode_sync(chunk_bytes, chunk_spec)
