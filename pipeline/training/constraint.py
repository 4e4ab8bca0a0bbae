"""The constraint on the decoder of most dictionaries: rows on the unit sphere.

The gradient's radial part is removed before the optimiser sees it, and rows are normalised after each update: the
projection alone does not keep the norm (Bricken et al. 2023).

Letters: F latents, T width of the targets.
"""

from __future__ import annotations

import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.parameters import gradient


@torch.no_grad()
def make_tangential(dictionary: Dictionary) -> None:
    """Remove from the gradient of each decoder row its part along the row."""
    grad_FT = gradient(dictionary.decoder)
    radial_F = torch.linalg.vecdot(grad_FT, dictionary.decoder)
    grad_FT.addcmul_(radial_F[:, None], dictionary.decoder, value=-1)


@torch.no_grad()
def normalise(dictionary: Dictionary) -> None:
    """Decoder rows to norm 1."""
    norms_F = torch.linalg.vector_norm(dictionary.decoder, dim=1, keepdim=True)
    dictionary.decoder.div_(norms_F.clamp_(min=torch.finfo(norms_F.dtype).tiny))
