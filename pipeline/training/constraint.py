"""The constraint on the decoder of most dictionaries: rows on the unit sphere.

The gradient's radial part is removed before the optimiser sees it, and rows are normalised after each update: the
projection alone does not keep the norm (Bricken et al. 2023).

Letters: F latents, T width of the targets.
"""

from __future__ import annotations

import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.parameters import gradient

_CHUNK_BYTES = 2**21
"""Rows that stay in a processor's cache between the two passes over them."""


@torch.no_grad()
def make_tangential(dictionary: Dictionary) -> None:
    """Remove from the gradient of each decoder row its part along the row."""
    grad_FT, size = gradient(dictionary.decoder), _chunk_rows(dictionary.decoder)
    for grad, decoder in zip(torch.split(grad_FT, size), torch.split(dictionary.decoder, size), strict=True):
        radial_F = torch.linalg.vecdot(grad, decoder)
        grad.addcmul_(radial_F[:, None], decoder, value=-1)


@torch.no_grad()
def normalise(dictionary: Dictionary) -> None:
    """Decoder rows to norm 1."""
    for decoder in torch.split(dictionary.decoder, _chunk_rows(dictionary.decoder)):
        norms_F = torch.linalg.vector_norm(decoder, dim=1, keepdim=True)
        decoder.div_(norms_F.clamp_(min=torch.finfo(norms_F.dtype).tiny))


def _chunk_rows(decoder: torch.Tensor) -> int:
    if decoder.device.type != "cpu":
        return max(1, len(decoder))
    return max(1, _CHUNK_BYTES // (decoder.element_size() * max(1, decoder.shape[1])))
