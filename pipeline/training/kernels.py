"""The steps of sparse codes behind one interface, with implementations of equal results.

    CPU, float32     compiled loops over the active latents (``compiled.py``), the largest pre-activations found in
                     fixed point (``screening.py``)
    CUDA, float32    Triton over the active latents (``gpu_kernels.py``); the largest pre-activations by torch
    anything else    plain torch: the codes made dense, matrix products, deterministic on any device

Letters: B rows, F latents, K active latents of a row, S and T widths of sources and targets.
"""

from __future__ import annotations

import importlib.util
from typing import Protocol

import torch

from pipeline.dictionaries.activations.topk import topk
from pipeline.dictionaries.codes import SparseCodes


class Kernels(Protocol):
    """Slots of value 0 are not active: they decode to nothing and get no gradient."""

    @property
    def has_products(self) -> bool:
        """``largest`` and ``above`` keep the pre-activations [B, F] in memory."""
        ...

    def largest(self, z_BS: torch.Tensor, encoder: torch.Tensor, b_enc: torch.Tensor, k: int) -> SparseCodes:
        """The k <= F largest of z encoder^T + b_enc of each row, negative ones cut to 0; encoder [F, S].

        Of values that tie at the k-th place those of the lowest latents are kept.
        """
        ...

    def above(
        self, z_BS: torch.Tensor, encoder: torch.Tensor, b_enc: torch.Tensor, least: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of at least ``least`` > 0 and their places in [B * F], ascending."""
        ...

    def decode(self, codes: SparseCodes, table: torch.Tensor, out: torch.Tensor) -> None:
        """out [B, T] += sum over active slots of value * table[latent]; table [F, T]."""
        ...

    def code_gradient(self, codes: SparseCodes, table: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """[B, K]: <grad[b], table[latent]> of active slots, 0 of the others; grad [B, T]."""
        ...

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
        """Add to the three gradients ([F, T], [F, S], [F]) what the active slots contribute.

        decoder_grad[f] += value * grad[b]; encoder_grad[f] += code_grad * inputs[b]; b_enc_grad[f] += code_grad.
        """
        ...


class TorchKernels:
    """Dense products over all latents."""

    has_products = True

    def largest(self, z_BS: torch.Tensor, encoder: torch.Tensor, b_enc: torch.Tensor, k: int) -> SparseCodes:
        """See ``Kernels``."""
        return topk(products(z_BS, encoder, b_enc), k)

    def above(
        self, z_BS: torch.Tensor, encoder: torch.Tensor, b_enc: torch.Tensor, least: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Kernels``."""
        return not_below(products(z_BS, encoder, b_enc), least)

    def decode(self, codes: SparseCodes, table: torch.Tensor, out: torch.Tensor) -> None:
        """See ``Kernels``."""
        out.addmm_(codes.dense(table.shape[0]), table)

    def code_gradient(self, codes: SparseCodes, table: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """See ``Kernels``."""
        return (grad @ table.T).gather(1, codes.indices).mul_(codes.values > 0)

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
        """See ``Kernels``."""
        num_latents = decoder_grad.shape[0]
        slopes_BF = SparseCodes(code_grad, codes.indices).dense(num_latents)
        decoder_grad.addmm_(codes.dense(num_latents).T, grad)
        encoder_grad.addmm_(slopes_BF.T, inputs)
        b_enc_grad.add_(slopes_BF.sum(0))


def products(z_BS: torch.Tensor, encoder: torch.Tensor, b_enc: torch.Tensor) -> torch.Tensor:
    """Pre-activations [B, F] in the dtype of ``b_enc``; ``z_BS`` and ``encoder`` may be of a lower precision."""
    if z_BS.dtype == b_enc.dtype:
        return torch.addmm(b_enc, z_BS, encoder.T)
    return torch.mm(z_BS, encoder.T, out_dtype=b_enc.dtype).add_(b_enc)


def not_below(pre_BF: torch.Tensor, least: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of at least ``least`` and their places in [B * F]."""
    flat = pre_BF.reshape(-1)
    places = (flat >= least).nonzero().squeeze(1)
    return flat[places], places


def choose(device: torch.device, dtype: torch.dtype, num_threads: int) -> Kernels:
    """Compiled loops on the CPU in float32, Triton on CUDA in float32 where it is installed, plain torch elsewhere."""
    # Loaded here because importing numba or Triton takes longer than all the rest of this package.
    if device.type == "cpu" and dtype == torch.float32:
        from pipeline.training.compiled import CompiledKernels

        return CompiledKernels(num_threads)
    if device.type == "cuda" and dtype == torch.float32 and importlib.util.find_spec("triton") is not None:
        from pipeline.training.gpu_kernels import TritonKernels

        return TritonKernels()
    return TorchKernels()
