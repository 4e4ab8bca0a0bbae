"""The sparse half of a TopK step on the CPU, compiled: float32, one pass over the active latents each.

The loops release the interpreter lock and each works on its own range of rows or latents, so plain threads run them
side by side; no numba threading layer is involved, which keeps them safe in any process that a launcher starts. Every
output row is written by one thread in a fixed order: results do not depend on the number of threads.

Letters: B rows, F latents, K active latents of a row, S and T widths of sources and targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from pipeline.dictionaries.codes import SparseCodes
from pipeline.training import fixed_point
from pipeline.training.kernels import TorchKernels
from pipeline.training.loops import compile_loop
from pipeline.training.screening import Screen


def _decode(values: Any, indices: Any, table: Any, out: Any, first: int, last: int) -> None:
    num_active, width = indices.shape[1], table.shape[1]
    for b in range(first, last):
        for k in range(num_active):
            value = values[b, k]
            if value != 0:
                latent = indices[b, k]
                for d in range(width):
                    out[b, d] += value * table[latent, d]


def _code_gradient(values: Any, indices: Any, table: Any, grad: Any, out: Any, first: int, last: int) -> None:
    num_active, width = indices.shape[1], table.shape[1]
    for b in range(first, last):
        for k in range(num_active):
            total = np.float32(0)
            if values[b, k] != 0:
                latent = indices[b, k]
                for d in range(width):
                    total += grad[b, d] * table[latent, d]
            out[b, k] = total


def _sort_by_latent(values: Any, indices: Any, num_latents: int) -> Any:
    """Counting sort of the active slots: ``order[starts[f]:starts[f + 1]]`` are the flat slots of latent f."""
    num_rows, num_active = indices.shape
    starts = np.zeros(num_latents + 1, np.int64)
    for b in range(num_rows):
        for k in range(num_active):
            if values[b, k] != 0:
                starts[indices[b, k] + 1] += 1
    for latent in range(num_latents):
        starts[latent + 1] += starts[latent]
    free = starts[:-1].copy()
    order = np.empty(starts[-1], np.int64)
    for b in range(num_rows):
        for k in range(num_active):
            if values[b, k] != 0:
                latent = indices[b, k]
                order[free[latent]] = b * num_active + k
                free[latent] += 1
    return order, starts


def _weight_gradients(
    order: Any, starts: Any, values: Any, code_grad: Any, grad: Any, inputs: Any,
    decoder_grad: Any, encoder_grad: Any, b_enc_grad: Any, first: int, last: int,
) -> None:  # fmt: skip
    num_active, width_target, width_source = values.shape[1], grad.shape[1], inputs.shape[1]
    for latent in range(first, last):
        for place in range(starts[latent], starts[latent + 1]):
            slot = order[place]
            b = slot // num_active
            value = values[b, slot - b * num_active]
            slope = code_grad[b, slot - b * num_active]
            for d in range(width_target):
                decoder_grad[latent, d] += value * grad[b, d]
            for d in range(width_source):
                encoder_grad[latent, d] += slope * inputs[b, d]
            b_enc_grad[latent] += slope


_decode_compiled = compile_loop(_decode)
_code_gradient_compiled = compile_loop(_code_gradient)
_sort_compiled = compile_loop(_sort_by_latent)
_weight_gradients_compiled = compile_loop(_weight_gradients)


class CompiledKernels:
    """``kernels.Kernels`` for CPU float32. Compiles on first use, a few seconds a process."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = max(1, num_threads)
        self._pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="kernels")
        self._screen = Screen(self._share) if fixed_point.is_supported() else None

    @property
    def has_products(self) -> bool:
        """See ``kernels.Kernels``."""
        return self._screen is None

    def largest(self, z_BS: torch.Tensor, encoder: torch.Tensor, b_enc: torch.Tensor, k: int) -> SparseCodes:
        """See ``kernels.Kernels``."""
        if self._screen is None:
            return TorchKernels().largest(z_BS, encoder, b_enc, k)
        return self._screen.largest(z_BS.contiguous(), encoder, b_enc, k)

    def above(
        self, z_BS: torch.Tensor, encoder: torch.Tensor, b_enc: torch.Tensor, least: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``kernels.Kernels``."""
        if self._screen is None:
            return TorchKernels().above(z_BS, encoder, b_enc, least)
        return self._screen.above(z_BS.contiguous(), encoder, b_enc, least)

    def decode(self, codes: SparseCodes, table: torch.Tensor, out: torch.Tensor) -> None:
        """See ``kernels.Kernels``."""
        arrays = _arrays(codes.values, codes.indices, table, out)
        self._run(_decode_compiled, arrays, self._even(out.shape[0]))

    def code_gradient(self, codes: SparseCodes, table: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """See ``kernels.Kernels``."""
        out = torch.empty_like(codes.values)
        arrays = _arrays(codes.values, codes.indices, table, grad, out)
        self._run(_code_gradient_compiled, arrays, self._even(out.shape[0]))
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
        values, indices = _arrays(codes.values, codes.indices)
        order, starts = _sort_compiled(values, indices, decoder_grad.shape[0])
        # Cut where the active slots are, not where the latents are: a few latents own most of them.
        shares = np.linspace(0, starts[-1], self.num_threads + 1)[1:-1]
        cuts = [0, *np.searchsorted(starts[1:], shares).tolist(), decoder_grad.shape[0]]
        arrays = _arrays(codes.values, code_grad, grad, inputs, decoder_grad, encoder_grad, b_enc_grad)
        self._run(_weight_gradients_compiled, [order, starts, *arrays], cuts)

    def _even(self, size: int) -> list[int]:
        return [size * part // self.num_threads for part in range(self.num_threads + 1)]

    def _share(self, work: Callable[[int], Any], count: int) -> list[Any]:
        """The results of work(0) .. work(count - 1); a thread that is done takes the next."""
        results: list[Any] = [None] * count
        tasks = iter(range(count))

        def take() -> None:
            for task in tasks:
                results[task] = work(task)

        helpers = [self._pool.submit(take) for _ in range(min(self.num_threads, count) - 1)]
        take()
        for helper in helpers:
            helper.result()
        return results

    def _run(self, loop: Callable[..., Any], arrays: Sequence[Any], cuts: Sequence[int]) -> None:
        """Each part, between two cuts, in a thread of its own."""
        self._share(lambda part: loop(*arrays, *cuts[part : part + 2]), len(cuts) - 1)


def _arrays(*tensors: torch.Tensor) -> list[Any]:
    """Zero-copy views; outputs must be contiguous, which a silent copy would hide."""
    assert all(tensor.is_contiguous() for tensor in tensors)
    return [tensor.detach().numpy() for tensor in tensors]
