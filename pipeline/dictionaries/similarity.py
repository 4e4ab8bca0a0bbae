"""How alike two sets of directions are.

Letters: F and G directions of either set, D width.
"""

from __future__ import annotations

import torch


def max_cosines(a_FD: torch.Tensor, b_GD: torch.Tensor, *, block_rows: int = 4096) -> torch.Tensor:
    """For each row of ``a`` the largest cosine with any row of ``b``, [F]; a zero row has cosine 0 with all.

    ``a`` is taken in blocks, so memory is block_rows * G.
    """
    b_GD = torch.nn.functional.normalize(b_GD, dim=1)
    blocks = (torch.nn.functional.normalize(block_BD, dim=1) for block_BD in torch.split(a_FD, block_rows))
    return torch.cat([(block_BD @ b_GD.T).amax(dim=1) for block_BD in blocks])


def mmcs(a_FD: torch.Tensor, b_GD: torch.Tensor) -> float:
    """Mean over the rows of ``a`` of the largest cosine with ``b`` (Sharkey et al. 2022). Not symmetric.

    With the true features as ``a``: how well they were found. With the dictionary as ``a``: how many of its latents
    are true ones.
    """
    return float(max_cosines(a_FD, b_GD).mean())
