"""Does a network fit: compares what its weights will take with the memory that is free, before anything is read."""

from __future__ import annotations

from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]
import torch

from pipeline.models.location import ModelLocation
from pipeline.models.weights import weight_files
from schemas.errors import ModelError, ResourceError
from schemas.fields import format_bytes

_MEBI = 1 << 20
# Four-bit blocks with their scales take 4.5 bits a weight; coarser files hold more weights in a byte.
_GGUF_BITS_PER_WEIGHT = 4.5


def require_memory(location: ModelLocation, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a local model that cannot fit. Hub and ``python:`` models have no size known beforehand.

    Raises:
        ResourceError: with what is needed and what is free.
    """
    if location.kind not in ("folder", "gguf"):
        return
    require_room(weights_bytes(location, dtype), dtype, device, what=f"model {location.path}")


def require_room(needed: int, dtype: torch.dtype, device: torch.device, *, what: str) -> None:
    """Refuse weights of ``needed`` bytes that this machine or device has no room for.

    Raises:
        ResourceError: with what is needed and what is free.
    """
    dtype_name = str(dtype).removeprefix("torch.")
    free = {"memory": int(psutil.virtual_memory().available)}
    if device.type == "cuda":
        free["CUDA memory"] = int(torch.cuda.mem_get_info(device)[0])
    for memory, free_bytes in free.items():
        if needed > free_bytes:
            raise ResourceError(
                f"{what} needs about {_rounded(needed)} of {memory} as {dtype_name}, "
                f"{_rounded(free_bytes)} are free; choose a smaller dtype or model, or fewer replicas per node"
            )


def weights_bytes(location: ModelLocation, dtype: torch.dtype) -> int:
    """Bytes of the loaded weights; exact for safetensors, an estimate for GGUF and pickled tensors.

    Raises:
        ModelError: a safetensors file that is cut or altered in its header.
    """
    if location.kind == "gguf":
        file_bytes = Path(location.path, location.file).stat().st_size
        return int(file_bytes * 8 / _GGUF_BITS_PER_WEIGHT) * dtype.itemsize
    return sum(_file_weights_bytes(path, dtype) for path in weight_files(Path(location.path)))


def _file_weights_bytes(path: Path, dtype: torch.dtype) -> int:
    if path.suffix != ".safetensors":
        return path.stat().st_size * dtype.itemsize // torch.float16.itemsize
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ModelError(f"model weights {path} are not whole: {error}; copy or download the file again") from error
    return sum(int(torch.Size(shape).numel()) for shape in shapes) * dtype.itemsize


def _rounded(size_bytes: int) -> str:
    return format_bytes(max(size_bytes // _MEBI, 1) * _MEBI)
