"""What a dictionary asks of its activation function, and which one a spec names.

Letters: B rows, F latents, K active latents of a row.
"""

from __future__ import annotations

from typing import Protocol

import torch

from pipeline.dictionaries.activations.batch_topk import BatchTopKActivation
from pipeline.dictionaries.activations.gated import GatedActivation
from pipeline.dictionaries.activations.jumprelu import JumpReluActivation
from pipeline.dictionaries.activations.relu import ReluActivation
from pipeline.dictionaries.activations.target_gates import TargetGates
from pipeline.dictionaries.activations.topk import TopKActivation
from pipeline.dictionaries.codes import SparseCodes
from schemas.activation import Activation, BatchTopK, Gated, JumpRelu, MatryoshkaBatchTopK, TopK


class ActivationFunction(Protocol):
    """A module: its parameters and buffers are the dictionary's, under ``activation.NAME``."""

    def encode(self, pre_BF: torch.Tensor, b_enc_F: torch.Tensor) -> SparseCodes | torch.Tensor:
        """Codes of pre-activations, row by row, none negative: sparse, or dense [B, F].

        ``b_enc_F`` is in the pre-activations already; a function that scales what comes without it takes it off.
        """
        ...


def activation_function(
    activation: Activation, num_latents: int, num_targets: int, *, device: torch.device | str, dtype: torch.dtype
) -> torch.nn.Module:
    """The module of a spec at its start: an ``ActivationFunction``, or ``TargetGates``."""
    if isinstance(activation, TopK):
        return TopKActivation(activation.k)
    if isinstance(activation, BatchTopK | MatryoshkaBatchTopK):
        return BatchTopKActivation(device=device)
    if isinstance(activation, JumpRelu) and activation.gate == "per_target":
        return TargetGates(num_latents, num_targets, start=activation.threshold, device=device, dtype=dtype)
    if isinstance(activation, JumpRelu):
        return JumpReluActivation(num_latents, start=activation.threshold, device=device, dtype=dtype)
    if isinstance(activation, Gated):
        return GatedActivation(num_latents, device=device, dtype=dtype)
    return ReluActivation()
