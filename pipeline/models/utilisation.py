"""Model FLOP utilisation: what a forward needs, and what the device could do.

Operations of a forward for one token, as PaLM counts them (Chowdhery et al. 2022, appendix B; its factor three is for
training: of gradients at hook points only, the way back costs as much as the forward, for no weight is trained):

    2 N + 4 L T W    N weights of matrix products, L layers with attention, T tokens of a context, W all heads' width

N is of the layers that run: embeddings are looked up, not multiplied, and layers behind the last hook point are cut
off. Of a mixture of experts the share of experts that a token passes through counts. The causal mask takes nothing off.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from pipeline.models.hooks import find_blocks
from schemas.errors import SpecError

VARIABLE = "HEADWORKS_PEAK_FLOP_PER_S"
"""The operator's figure for one device of this machine; it goes before the table and the measurement."""

_SIDES = (256, 512, 1024)
_RUNS = 5
_ENOUGH_S = 0.05

# Dense products, no sparsity, from the makers' data sheets, in 10^12 per second: (16 bit, float32 without TF32).
# The first name that the device's name contains counts, so the special ones come first.
_DATA_SHEETS: tuple[tuple[str, float, float], ...] = (
    ("GB200", 2500, 80),
    ("B200", 2250, 75),
    ("H200 NVL", 835, 60),
    ("H200", 989, 67),
    ("H100 NVL", 835, 60),
    ("H100 PCIe", 756, 51),
    ("H100", 989, 67),
    ("H800", 989, 67),
    ("A100", 312, 19.5),
    ("A800", 312, 19.5),
    ("L40S", 362, 91.6),
    ("L4", 121, 30.3),
    ("A40", 149.7, 37.4),
    ("A10G", 70, 31.5),
    ("V100", 125, 15.7),
    ("T4", 65, 8.1),
    ("MI300X", 1307, 163.4),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71, 35.6),
)
_NO_BFLOAT16 = ("V100", "T4")


@dataclass(frozen=True)
class Peak:
    """Floating-point operations per second that one device could do, and who says so."""

    flop_per_s: float
    source: Literal["operator", "data sheet", "measured"]


def flop_per_token(
    network: nn.Module, context_length: int, *, goes_back: bool = False, share_of_heads: float = 1.0
) -> float:
    """Operations of one token's way through ``network``, which is cut off already; see the formula above.

    Args:
        network: Of weights that are split over processes, this process's part counts, and what is on the meta
            device, in another process, does not.
        context_length: T.
        goes_back: Count the gradients at hook points too.
        share_of_heads: Of attention that is split over processes, what this process computes.
    """
    config = getattr(network, "config", None)
    weights = sum(_active(parameter, config) for parameter in _multiplied(network))
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    width = heads * int(getattr(config, "head_dim", 0) or int(getattr(config, "hidden_size", 0)) // max(heads, 1))
    blocks = find_blocks(network)
    num_layers = sum(not _is_elsewhere(layer) for layer in blocks.layers) if blocks else 0
    forward = 2.0 * weights + 4.0 * num_layers * context_length * width * share_of_heads
    return 2.0 * forward if goes_back else forward


def peak_flop_per_s(device: torch.device, dtype: torch.dtype, name: str = "") -> Peak:
    """Of one device: the operator's ``HEADWORKS_PEAK_FLOP_PER_S``, else the data sheet of a GPU (``name`` instead of
    the one that it gives itself), else what a matrix product reaches here with the threads that torch has.

    Raises:
        SpecError: the variable is not a positive number.
    """
    if given := os.environ.get(VARIABLE):
        return Peak(_parsed(given), "operator")
    if device.type == "cuda":
        known = _data_sheet(name or torch.cuda.get_device_name(device), dtype)
        if known:
            return Peak(known, "data sheet")
    return Peak(_measured(device, dtype), "measured")


def _multiplied(network: nn.Module) -> list[nn.Parameter]:
    """The matrices that rows are multiplied with; tied ones once for each place they stand in."""
    return [
        parameter
        for module in network.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if parameter.ndim >= 2 and not parameter.is_meta
    ]


def _is_elsewhere(layer: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in layer.parameters())


def _active(parameter: nn.Parameter, config: object) -> float:
    """Entries of a matrix that one token meets; of stacked experts those of the experts it is sent to."""
    chosen = getattr(config, "num_experts_per_tok", None)
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    if local.ndim == 3 and chosen:
        return local.numel() * int(chosen) / parameter.shape[0]
    return local.numel()


def _data_sheet(name: str, dtype: torch.dtype) -> float | None:
    for known, half, single in _DATA_SHEETS:
        # "L4" must not be found in "L40".
        if known in name and not name.split(known, 1)[1][:1].isdigit():
            if dtype == torch.bfloat16 and known in _NO_BFLOAT16:
                return None
            return (single if dtype == torch.float32 else half) * 1e12
    return None


@torch.no_grad()
def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of products of square matrices, small ones first, until there was time enough."""
    best, started = 0.0, time.perf_counter()
    for side in _SIDES:
        matrix = torch.full((side, side), 0.5, dtype=dtype, device=device)
        for _ in range(_RUNS):
            best = max(best, 2.0 * side**3 / _seconds_of_product(matrix))
            if time.perf_counter() - started > _ENOUGH_S:
                return best
    return best


def _seconds_of_product(matrix: torch.Tensor) -> float:
    started = time.perf_counter()
    matrix @ matrix
    if matrix.device.type == "cuda":
        torch.cuda.synchronize(matrix.device)
    return time.perf_counter() - started


def _parsed(given: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise SpecError(f"{VARIABLE} must be a positive number of operations per second, such as 312e12; got {given!r}")
    return value
