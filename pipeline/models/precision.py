"""In which precision and on which device a network computes; asked of the processor when called, never at import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import ModelError
from schemas.fields import Dtype
from schemas.model import ModelSpec

if TYPE_CHECKING:
    import torch

# Linux names: Intel matrix tiles, AVX-512 dot products, and Arm's bfloat16 extension.
_BFLOAT16_UNITS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})


def resolve_device(spec: ModelSpec) -> torch.device:
    """``auto`` is CUDA where there is one.

    Raises:
        ModelError: ``cuda`` was asked for where there is none, or torch does not know the device.
    """
    import torch  # seconds; a driver that names device and dtype does without

    if spec.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(spec.device)
    except RuntimeError as error:
        raise ModelError(f"model device {spec.device!r} is unknown; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"model device {spec.device!r} was asked for, but torch sees no CUDA device here; use auto")
    return device


def resolve_dtype(spec: ModelSpec) -> Dtype:
    """The compute precision, with ``native`` decided for the device that ``spec`` runs on here."""
    if spec.dtype != "native":
        return spec.dtype
    if resolve_device(spec).type == "cuda":
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if _processor_flags() & _BFLOAT16_UNITS else "float32"


def _processor_flags() -> frozenset[str]:
    """Instruction set extensions of this processor, named as Linux names them.

    A bfloat16 matrix product runs without such units too, but several times slower than in float32.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:  # not Linux: torch answers under nearly the same names
        import torch

        return frozenset(name for name, present in torch.cpu.get_capabilities().items() if present is True)
    words = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(words, []))
