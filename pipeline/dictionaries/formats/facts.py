"""What a format says of a dictionary beside its weights, and how a format is told apart from others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import safetensors.torch
import torch

from pipeline.store.objects import Objects
from schemas.errors import CorruptionError, SpecError


@dataclass(frozen=True)
class Facts:
    """Names; empty where not known."""

    name: str
    model: str
    source: str
    """Hook point."""
    target: str
    learning_rate: float = 0.0
    steps: int = 0
    seed: int = 0
    store_fingerprint: str = ""


def refuse(name: str, format_name: str, reason: str) -> NoReturn:
    """Say why the format cannot hold the dictionary."""
    raise SpecError(f"dictionary {name!r} has no counterpart in the format {format_name}: {reason}")


def packed(tensors: dict[str, torch.Tensor]) -> bytes:
    """A safetensors file; tensors of one memory are written twice."""
    data: bytes = safetensors.torch.save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})
    return data


def unpacked(folder: Objects, key: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        MissingError: there is none. CorruptionError: it is none.
    """
    data = folder.read(key)
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
    except Exception as error:  # the library's own class says nothing of where
        raise CorruptionError(f"{folder.url}/{key} is no safetensors file: {error}") from error
    return tensors


def tensor(tensors: dict[str, torch.Tensor], name: str, where: str) -> torch.Tensor:
    """One of them, float32.

    Raises:
        CorruptionError: it is not there.
    """
    if name not in tensors:
        raise CorruptionError(f"{where} lacks the tensor {name!r}; it has {sorted(tensors)}")
    return tensors[name].float()


def field(config: dict[str, Any], name: str, where: str) -> Any:
    """A field of a JSON document.

    Raises:
        CorruptionError: it is not there.
    """
    if name not in config:
        raise CorruptionError(f"{where} lacks the field {name!r}; it has {sorted(config)}")
    return config[name]
