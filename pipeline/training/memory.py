"""What training will take, compared with what the machine has, before anything is allocated."""

from __future__ import annotations

from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.optimiser import num_moments
from schemas.dictionary import DictionarySpec
from schemas.errors import ResourceError

_FLOAT_BYTES = 4


def num_weights(spec: DictionarySpec, widths: dict[str, int]) -> int:
    """Trainable numbers of a dictionary; ``widths``: hook point -> d_model."""
    return sum(parameter.numel() for parameter in _parameters(spec, widths))


def required_bytes(specs: list[DictionarySpec], widths: dict[str, int], latent_shards: int = 1) -> int:
    """Weights, gradients and what the optimiser remembers, of all dictionaries of a job on one rank.

    ``latent_shards``: ranks that hold a dictionary together; of the largest shard.
    """
    return sum(
        _FLOAT_BYTES * parameter.numel() * (2 + num_moments(spec.optimiser, parameter))
        for spec in specs
        for parameter in _parameters(spec, widths, latent_shards)
    )


def _parameters(spec: DictionarySpec, widths: dict[str, int], latent_shards: int = 1) -> list[torch.nn.Parameter]:
    """Shapes without memory."""
    latents = range(-(-spec.num_latents // latent_shards))
    d_source = {point: widths[point] for point in spec.sources}
    d_target = {point: widths[point] for point in spec.target_points}
    dictionary = Dictionary(spec, d_source, d_target, dict.fromkeys(widths, 1.0), latents=latents, device="meta")
    return list(dictionary.parameters())


def available_bytes(device: torch.device) -> int:
    """Free memory of the device: of the GPU, or of the machine and its container, whichever is less."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free: int = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (words := limit.read_text().strip()) != "max":
        free = min(free, int(words) - int(used.read_text()))
    return free


def require_memory(
    specs: list[DictionarySpec],
    widths: dict[str, int],
    *,
    available: int,
    ranks_per_node: int = 1,
    latent_shards: int = 1,
) -> None:
    """Refuse a job that cannot fit.

    Raises:
        ResourceError: with what each dictionary takes, the sum and what there is.
    """
    required = required_bytes(specs, widths, latent_shards) * ranks_per_node
    if required <= available:
        return
    lines = [
        f"  {spec.name}: {spec.num_latents:,} latents, {num_weights(spec, widths):,} weights, "
        f"{_gib(required_bytes([spec], widths, latent_shards))} a rank with gradient and optimiser"
        for spec in specs
    ]
    raise ResourceError(
        f"training needs {_gib(required)} of memory ({ranks_per_node} ranks on this machine), {_gib(available)} are "
        "available:\n" + "\n".join(lines) + "\nask for fewer latents, fewer dictionaries in one job, or fewer ranks"
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
