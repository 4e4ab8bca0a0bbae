"""The sparse half of a step on GPUs, in Triton: only active latents are read and written.

The largest pre-activations are torch's. Nothing is added atomically: every output row belongs to one program, which
adds in a fixed order, so that equal inputs give equal bits. Slots are sorted by latent first, stably; the program of a
latent walks along its own.

Triton's interpreter runs the same kernels on the CPU (``TRITON_INTERPRET=1``), which is how the tests run them.

Letters: B rows, F latents, K active latents of a row, S and T widths of sources and targets.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from pipeline.dictionaries.codes import SparseCodes
from pipeline.training.kernels import TorchKernels

_WIDTH = 128
"""Channels that a program adds up at a time; a wider row has several programs."""


@triton.jit  # type: ignore[untyped-decorator]
def _decode(values, indices, table, out, num_active, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < width
    total = tl.load(out + row * width + channels, mask=inside, other=0.0)
    for slot in range(num_active):
        value = tl.load(values + row * num_active + slot)
        latent = tl.load(indices + row * num_active + slot)
        if value != 0:
            total += value * tl.load(table + latent * width + channels, mask=inside, other=0.0)
    tl.store(out + row * width + channels, total, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _code_gradient(values, indices, table, grad, out, num_active, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1)
    value = tl.load(values + row * num_active + slot)
    latent = tl.load(indices + row * num_active + slot)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    if value != 0:
        for first in range(0, width, BLOCK):
            channels = first + tl.arange(0, BLOCK)
            inside = channels < width
            weight = tl.load(table + latent * width + channels, mask=inside, other=0.0)
            total += weight * tl.load(grad + row * width + channels, mask=inside, other=0.0)
    tl.store(out + row * num_active + slot, tl.sum(total, axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _weight_gradient(order, starts, factors, rows, out, num_active, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """out[latent] += sum over the slots of a latent, in the order of rows, of factor * row."""
    latent = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < width
    first = tl.load(starts + latent)
    last = tl.load(starts + latent + 1)
    if first < last:
        total = tl.load(out + latent * width + channels, mask=inside, other=0.0)
        for place in range(first, last):
            slot = tl.load(order + place)
            factor = tl.load(factors + slot)
            total += factor * tl.load(rows + (slot // num_active) * width + channels, mask=inside, other=0.0)
        tl.store(out + latent * width + channels, total, mask=inside)


class TritonKernels(TorchKernels):
    """``kernels.Kernels`` for float32 on CUDA."""

    def decode(self, codes: SparseCodes, table: torch.Tensor, out: torch.Tensor) -> None:
        """See ``kernels.Kernels``."""
        num_rows, width = out.shape
        if num_rows:
            grid = (num_rows, triton.cdiv(width, _WIDTH))
            _decode[grid](*_contiguous(codes, table, out), codes.values.shape[1], width, BLOCK=_WIDTH)

    def code_gradient(self, codes: SparseCodes, table: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """See ``kernels.Kernels``."""
        out = torch.empty_like(codes.values)
        if out.numel():
            arrays = _contiguous(codes, table, grad, out)
            _code_gradient[out.shape](*arrays, out.shape[1], grad.shape[1], BLOCK=_WIDTH)
        return out

    def add_weight_gradients(
        self,
        codes: SparseCodes,
        code_grad: torch.Tensor,
        grad: torch.Tensor,
        inputs: torch.Tensor,
        *,
        decoder_grad: torch.Tensor,
        encoder_grad: torch.Tensor,
        b_enc_grad: torch.Tensor,
    ) -> None:
        """See ``kernels.Kernels``."""
        order, starts = _by_latent(codes, len(decoder_grad))
        ones = torch.ones_like(grad[:, :1])
        for factors, rows, out in (
            (codes.values, grad, decoder_grad),
            (code_grad, inputs, encoder_grad),
            (code_grad, ones, b_enc_grad[:, None]),
        ):
            if order.numel():
                grid = (len(out), triton.cdiv(rows.shape[1], _WIDTH))
                arrays = _require_contiguous(order, starts, factors, rows, out)
                _weight_gradient[grid](*arrays, codes.values.shape[1], rows.shape[1], BLOCK=_WIDTH)


def _by_latent(codes: SparseCodes, num_latents: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``order[starts[f]:starts[f + 1]]`` are the active flat slots of latent f, ascending."""
    active_BK = codes.values != 0
    # Slots that are not active go behind all latents.
    keys = codes.indices.masked_fill(~active_BK, num_latents).flatten()
    keys, order = torch.sort(keys, stable=True)
    starts = torch.searchsorted(keys, torch.arange(num_latents + 1, device=keys.device))
    return order, starts


def _contiguous(codes: SparseCodes, *tensors: torch.Tensor) -> list[Any]:
    return _require_contiguous(codes.values, codes.indices, *tensors)


def _require_contiguous(*tensors: torch.Tensor) -> list[Any]:
    """Outputs must be contiguous, which a silent copy would hide."""
    assert all(tensor.is_contiguous() for tensor in tensors)
    return [tensor.detach() for tensor in tensors]
