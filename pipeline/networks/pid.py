"""The controller of PID attention (Nguyen et al. 2024, arXiv 2402.15989)."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.networks.carried import Carried
from schemas.errors import ModelError
from schemas.network import PidAttention


def steer(gains: PidAttention, mixed: Tensor, values: Tensor, carried: Carried, layer: int) -> Tensor:
    """``mixed``, the output of the heads, with the terms of layer ``layer`` added; all [B, H, L, d]. Layer 0 sets the
    reference in ``carried``, every layer adds its error. A term whose gain is 0 is left out.

    Raises:
        ModelError: a later layer runs without those before it.
    """
    if layer == 0:
        carried.reference = values
    if carried.reference is None or (layer > 0 and carried.error is None):
        raise ModelError(
            f"PID attention of layer {layer} needs the values of all layers before it, which did not run: "
            "such a network runs whole, in one process"
        )
    error = carried.reference - values
    previous = error if carried.error is None else carried.error
    carried.integral = error if carried.integral is None else carried.integral + error
    carried.error = error
    terms = (
        (gains.proportional, error), (gains.integral, carried.integral), (gains.derivative, error - previous),
    )  # fmt: skip
    for gain, term in terms:
        if gain:
            mixed = torch.add(mixed, term, alpha=gain)
    return mixed
