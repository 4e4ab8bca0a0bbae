"""The sparse half of a TopK step behind one interface, with two implementations of equal results.

    CPU, float32     compiled loops over the active latents (``compiled.py``)
    anything else    plain torch: the codes made dense, three matrix products, deterministic on any device

Letters: B rows, F latents, K active latents of a row, S and T widths of sources and targets.
"""

from __future__ import annotations

from typing import Protocol

import torch

from pipeline.dictionaries.codes import SparseCodes


class Kernels(Protocol):
    """Slots of value 0 are not active: they decode to nothing and get no gradient."""

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


def choose(device: torch.device, dtype: torch.dtype, num_threads: int) -> Kernels:
    """Compiled loops on the CPU in float32, plain torch elsewhere."""
    if device.type == "cpu" and dtype == torch.float32:
        # Loaded here because importing numba takes longer than all the rest of this package.
        from pipeline.training.compiled import CompiledKernels

        return CompiledKernels(num_threads)
    return TorchKernels()
